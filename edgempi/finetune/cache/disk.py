"""The shards of one cache on disk: appended to, read by place, recovered after a crash, compacted.

Deleting a sample appends a note; its bytes stay until `compact` rewrites their shard. Shards are rewritten oldest
first, each atomically, so a crash in between never brings a deleted sample back. A full disk ends caching, not the job.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.cache.codec import octets
from edgempi.finetune.cache.files import is_full, read_all, sync_folder, write_all
from edgempi.finetune.cache.index import INDEX_FILE, Ref, load_index, save_index
from edgempi.finetune.cache.record import DELETED, Buffer, deleted
from edgempi.finetune.cache.shard import scan, shard_numbers, shard_path


@dataclass
class Recovery:
    """What opening a cache found.

    Args:
        kept: whole records.
        dropped: records, or pieces of some, that were not whole or not there any more.
        dropped_bytes: of the pieces.
    """

    kept: int = 0
    dropped: int = 0
    dropped_bytes: int = 0


class Disk:
    """The shards of a folder that this process alone works with.

    Args:
        folder: where they lie; it exists.
        tag: of the key.
        budget_bytes: the most bytes that shards may take; None for all there is. Compacting needs up to a shard more
            for a while, the index 32 bytes a record.
        shard_bytes: a shard that is longer is followed by another.
    """

    def __init__(self, folder: Path, tag: int, budget_bytes: int | None, shard_bytes: int) -> None:
        self._folder, self._tag = folder, tag
        self._budget_bytes, self._shard_bytes = budget_bytes, shard_bytes
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._warned = False
        self._unsaved = False
        self.full = False
        """Whether the system had no room; nothing is appended then until `compact` frees some."""
        self.recovery = Recovery()

    @property
    def nbytes(self) -> int:
        """Of all shards, dead records included."""
        return sum(self._sizes.values())

    def open(self) -> dict[int, list[Ref]]:
        """Find what is there, by sample; cuts broken ends off. Sets `recovery`."""
        for rest in self._folder.glob(".*.new"):
            rest.unlink()
        numbers = shard_numbers(self._folder)
        sizes = {number: shard_path(self._folder, number).stat().st_size for number in numbers}
        covered, known = load_index(self._folder, self._tag) or ({}, [])
        samples: dict[int, list[Ref]] = {}
        whole = all(sizes.get(number, -1) >= size for number, size in covered.items())
        if whole:
            for ref in known:
                samples.setdefault(ref.sample, []).append(ref)
        else:
            # It must not be believed again once shards have grown past what it speaks of.
            (self._folder / INDEX_FILE).unlink(missing_ok=True)
            self._unsaved = True
        broken = 0
        for number in numbers:
            start = covered.get(number, 0) if whole else 0
            self._unsaved |= start < sizes[number]
            broken += self._replay(number, start, sizes[number], samples)
        found = {(ref.shard, ref.offset) for refs in samples.values() for ref in refs}
        vanished = 0 if whole else sum((ref.shard, ref.offset) not in found for ref in known)
        self.recovery.kept = len(found)
        self.recovery.dropped = max(broken, vanished)
        return samples

    def append(self, record: Tensor) -> tuple[int, int] | None:
        """Add a record; returns its shard and offset, or None where there is no room for it."""
        if self.full or (self._budget_bytes is not None and self.nbytes + record.numel() > self._budget_bytes):
            return None
        return self._append(octets(record))

    def delete(self, sample: int) -> None:
        """Note that a sample is deleted; raises `UserError` where there is no room even for that."""
        if self._append(deleted(self._tag, sample)) is None:
            raise UserError(
                f"activation cache {self._folder}", value=f"no room to note that sample {sample} is deleted",
                rule="a note takes 40 bytes", remedy="Free some space, or delete the folder: it holds nothing else",
            )  # fmt: skip

    def read(self, ref: Ref) -> Tensor | None:
        """The bytes of a record in a tensor of their own; None where the file ends before."""
        assert ref.shard is not None
        record = torch.empty(ref.nbytes, dtype=torch.uint8)
        there = read_all(self._file(ref.shard), octets(record), ref.offset)
        return record if there == ref.nbytes else None

    def flush(self, refs: Iterable[Ref]) -> None:
        """Make durable what was appended, and write the index."""
        if not self._unsaved:
            return
        try:
            if self._sizes:
                os.fsync(self._file(max(self._sizes)))
            save_index(self._folder, self._tag, self._sizes, refs)
            self._unsaved = False
        except OSError as error:
            self._note_full(error)

    def compact(self, refs: Iterable[Ref]) -> int:
        """Rewrite the shards that hold more than the given live records; returns the bytes freed."""
        live: dict[int, list[Ref]] = {number: [] for number in self._sizes}
        refs = list(refs)
        for ref in refs:
            if ref.shard is not None:
                live[ref.shard].append(ref)
        before = self.nbytes
        dead = [number for number, size in sorted(self._sizes.items()) if size > sum(r.nbytes for r in live[number])]
        if not dead:
            return 0
        # Places change: until the new index is there, the shards speak for themselves.
        (self._folder / INDEX_FILE).unlink(missing_ok=True)
        sync_folder(self._folder)
        self._unsaved, self.full = True, False
        try:
            for number in dead:
                self._rewrite(number, sorted(live[number], key=lambda ref: ref.offset))
        except OSError as error:
            self._note_full(error)
        self.flush(refs)
        return before - self.nbytes

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _replay(self, number: int, start: int, size: int, samples: dict[int, list[Ref]]) -> int:
        """Bring `samples` up to what a shard says from a byte on; returns how many pieces were broken."""
        path = shard_path(self._folder, number)
        found = scan(path, self._tag, start)
        for offset, header in found.records:
            if header.kind == DELETED:
                samples.pop(header.sample, None)
            else:
                ref = Ref(header.sample, header.layers, header.nbytes, number, offset)
                samples.setdefault(header.sample, []).append(ref)
        if found.end < size:
            os.truncate(path, found.end)
        self._sizes[number] = found.end
        self.recovery.dropped_bytes += found.broken_bytes
        return found.broken

    def _append(self, data: Buffer) -> tuple[int, int] | None:
        number = max(self._sizes, default=0)
        if self._sizes.get(number, 0) >= self._shard_bytes:
            number += 1
        offset = self._sizes.get(number, 0)
        try:
            if number not in self._sizes:
                self._start(number)
            write_all(self._file(number), data, offset)
        except OSError as error:
            if number in self._files:
                os.ftruncate(self._files[number], offset)
            self._note_full(error)
            return None
        self._sizes[number] = offset + len(data)
        self._unsaved = True
        return number, offset

    def _start(self, number: int) -> None:
        """Begin a shard; the one before is durable from here on."""
        if number - 1 in self._sizes:
            os.fsync(self._file(number - 1))
        self._files[number] = os.open(shard_path(self._folder, number), os.O_RDWR | os.O_CREAT, 0o600)
        self._sizes[number] = 0
        sync_folder(self._folder)

    def _rewrite(self, number: int, live: list[Ref]) -> None:
        path = shard_path(self._folder, number)
        if not live:
            path.unlink()
        else:
            temporary = path.with_name(f".{path.name}.new")
            offsets, end = [], 0
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                for ref in live:
                    record = self.read(ref)
                    if record is None:
                        # Reading it will say that it is not whole.
                        record = torch.zeros(ref.nbytes, dtype=torch.uint8)
                    write_all(descriptor, octets(record), end)
                    offsets.append(end)
                    end += ref.nbytes
                os.fsync(descriptor)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
            for ref, offset in zip(live, offsets, strict=True):
                ref.offset = offset
        if number in self._files:
            os.close(self._files.pop(number))
        self._sizes.pop(number)
        if live:
            self._sizes[number] = end
        sync_folder(self._folder)

    def _file(self, number: int) -> int:
        if number not in self._files:
            self._files[number] = os.open(shard_path(self._folder, number), os.O_RDWR)
        return self._files[number]

    def _note_full(self, error: OSError) -> None:
        """Go on without the disk where it is full; any other error is raised again."""
        if not is_full(error):
            raise error
        self.full = True
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"activation cache {self._folder}: {error.strerror}; what does not fit is computed again in each epoch",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip
