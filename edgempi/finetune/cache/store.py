"""The activation cache of one device: hidden states of the frozen backbone by sample, in memory and on disk.

Source: PAC, arXiv 2408.10746, section on the activation cache. There it is a file per sequence; here records of
unpadded, maybe rounded and projected rows in shared shards, kept under budgets. Where a sample goes, in this order:

1. to disk while there is room, so that a crash loses nothing, with a copy in memory while there is room (`memory.py`);
2. to memory alone where the disk has none, in the place of such copies;
3. nowhere: it is computed again in each epoch.

The same puts in the same order give the same places. A sample may come in parts, since in the first epoch a device has
only the layers of its own pipeline stage; it is found when all layers asked for are here. Methods may be called from
several threads of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgempi.finetune.cache.codec import Codec, octets
from edgempi.finetune.cache.disk import Disk, Recovery
from edgempi.finetune.cache.folder import take
from edgempi.finetune.cache.found import Budget, Counters, Found, Tier
from edgempi.finetune.cache.index import Ref
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.cache.memory import Memory
from edgempi.finetune.cache.record import Buffer, DamagedError, Header, parse, split

SHARD_BYTES = 256 << 20


class ActivationCache:
    """The cached samples of one key, under a folder that this process alone writes to.

    Args:
        root: the device's folder of caches; the key's digest names the one in it.
        key: what the activations depend on.
        budget: what they may take.
        shard_bytes: a shard that is longer is followed by another.

    Raises:
        UserError: the folder cannot be written to, another process works with it, or it was made with another key.
    """

    def __init__(self, root: Path, key: CacheKey, budget: Budget, shard_bytes: int = SHARD_BYTES) -> None:
        self.key, self.budget = key, budget
        self.folder = root / key.digest
        self.counters = Counters()
        self.codec = Codec(key)
        self._all = frozenset(range(len(key.layers)))
        self._missed: set[int] = set()
        self._closed = False
        self._guard = threading.RLock()
        self._memory = Memory(budget.memory_bytes)
        self._lock = take(self.folder, key)
        try:
            self._disk = Disk(self.folder, key.tag, budget.disk_bytes, shard_bytes)
            self._samples = self._disk.open()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, sample: int) -> bool:
        return not self.missing([sample])

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def recovery(self) -> Recovery:
        """What opening found, and what it dropped."""
        return self._disk.recovery

    @property
    def memory_bytes(self) -> int:
        """Of records in memory."""
        return self._memory.nbytes

    @property
    def disk_bytes(self) -> int:
        """Of shards, those of deleted samples included until `compact`."""
        return self._disk.nbytes

    def samples(self) -> list[int]:
        """The samples of which anything is here, oldest first."""
        with self._guard:
            return list(self._samples)

    def missing(self, samples: Iterable[int], layers: Iterable[str] | None = None) -> list[int]:
        """Those of `samples` of which not all `layers` (all by default) are here, in the order given."""
        wanted = self._places(layers)
        with self._guard:
            return [sample for sample in samples if not wanted <= self._here(sample)]

    def held(self, samples: Iterable[int]) -> list[frozenset[str]]:
        """The layers that are here, of each of `samples`."""
        with self._guard:
            return [frozenset(self.key.layers[place] for place in self._here(sample)) for sample in samples]

    def put(self, sample: int, layers: Mapping[str, Tensor]) -> Tier:
        """Cache hidden states of a sample, without padding; layers that are here already are left out.

        Args:
            sample: 0 to 2^64 - 1, e.g. `sample_id` of its tokens.
            layers: (T, D) each, floating-point; T may differ between layers.

        Returns:
            The farthest place that it found room in: `DISK`, `MEMORY` (lost with the process), or `RECOMPUTE`.
        """
        if not layers:
            raise ValueError(f"sample {sample} comes without layers")
        with self._guard:
            known = self._here(sample)
            new = {name: x_TD for name, x_TD in layers.items() if self.codec.place(name) not in known}
            if sample in self._missed:
                self._missed.discard(sample)
                self.counters.recomputed += 1
            if not new:
                return self._tier(sample)
            record = self.codec.encode(sample, new)
            tier = self._keep(parse(octets(record)), record)
            if tier is Tier.RECOMPUTE:
                self.counters.refused += 1
                self._missed.add(sample)
            else:
                self.counters.stored += 1
            return tier

    def get(self, sample: int, layers: Iterable[str] | None = None) -> Found:
        """What is cached of a sample, if all `layers` (all by default) are here; checksums are checked."""
        wanted = self._places(layers)
        with self._guard:
            if wanted <= self._here(sample):
                tier, records = Tier.MEMORY, []
                for ref in list(self._samples[sample]):
                    if wanted.isdisjoint(ref.layers):
                        continue
                    found = self._load(ref)
                    if found is None:
                        break
                    header, record, place = found
                    records.append((header, record))
                    tier = Tier.DISK if place is Tier.DISK else tier
                else:
                    self.counters.memory_hits += tier is Tier.MEMORY
                    self.counters.disk_hits += tier is Tier.DISK
                    return Found(sample, tier, self.codec, records, wanted)
            self.counters.misses += 1
            self._missed.add(sample)
            return Found(sample, Tier.RECOMPUTE, self.codec)

    def read(
        self, samples: Sequence[int], dtype: torch.dtype = torch.float32, layers: Iterable[str] | None = None
    ) -> list[dict[str, Tensor]]:
        """The hidden states of a batch, by sample and layer; an empty mapping where one must be computed."""
        wanted = None if layers is None else tuple(layers)
        return [self.get(sample, wanted).tensors(dtype) for sample in samples]

    def records(self, samples: Iterable[int], layers: Iterable[str] | None = None) -> list[Tensor]:
        """The records of the samples as another device's `add_records` takes them: bytes (uint8), not to be written to.

        With only some `layers` (all by default). A record that is damaged is left out; its sample then misses layers
        here too.
        """
        wanted = self._places(layers)
        with self._guard:
            refs = [ref for sample in samples for ref in list(self._samples.get(sample, ()))]
            found = [self._load(ref) for ref in refs if not wanted.isdisjoint(ref.layers)]
        return [self.codec.part(record, header, wanted) for header, record, _ in filter(None, found)]

    def record_bytes(self, samples: Iterable[int]) -> int:
        """How many bytes `records` gives, without reading them."""
        with self._guard:
            return sum(ref.nbytes for sample in samples for ref in self._samples.get(sample, ()))

    def add_records(self, buffers: Iterable[Buffer | Tensor]) -> int:
        """Take records as they are, one or several end to end in each buffer; those known already are left out.

        Returns:
            How many found room.

        Raises:
            DamagedError: bytes that are no whole record, or one of another key; those before it are kept.
        """
        added = 0
        for part in split(octets(buffer) if isinstance(buffer, Tensor) else buffer for buffer in buffers):
            record = torch.frombuffer(bytearray(part), dtype=torch.uint8)
            header = self.codec.check(record)
            with self._guard:
                if not set(header.layers) <= self._here(header.sample):
                    kept = self._keep(header, record) is not Tier.RECOMPUTE
                    added += kept
                    self.counters.refused += not kept
        self.counters.imported += added
        return added

    def delete(self, samples: Iterable[int], compact: bool = False) -> int:
        """Forget samples for good; their bytes leave the disk with `compact`. Returns how many were here."""
        with self._guard:
            known = [sample for sample in dict.fromkeys(samples) if sample in self._samples]
            for sample in known:
                if any(ref.shard is not None for ref in self._samples[sample]):
                    self._disk.delete(sample)
                for ref in self._samples.pop(sample):
                    self._memory.drop(ref)
            self.counters.deleted += len(known)
            if compact:
                self.compact()
            return len(known)

    def compact(self) -> int:
        """Rewrite shards without the bytes of deleted or damaged samples; returns the bytes freed."""
        with self._guard:
            return self._disk.compact(self._refs())

    def verify(self) -> list[int]:
        """Check every record on disk; returns the samples that lost one, which are then to be computed again."""
        with self._guard:
            refs = [ref for ref in self._refs() if ref.shard is not None]
            return list(dict.fromkeys(ref.sample for ref in refs if self._from_disk(ref) is None))

    def flush(self) -> None:
        """Make what was put survive a loss of power, and write the index; a crash of the process needs neither."""
        with self._guard:
            self._disk.flush(self._refs())

    def close(self) -> None:
        """Flush, and let another process have the folder; the cache is not to be used any more. Twice does no harm."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            try:
                self.flush()
            finally:
                self._disk.close()
                self._lock.release()

    def _keep(self, header: Header, record: Tensor) -> Tier:
        """Find a place for a record."""
        ref = Ref(header.sample, header.layers, header.nbytes)
        place = self._disk.append(record)
        if place is not None:
            ref.shard, ref.offset = place
        in_memory = self._memory.offer(ref, record)
        if place is None and not in_memory:
            return Tier.RECOMPUTE
        self._samples.setdefault(header.sample, []).append(ref)
        return Tier.MEMORY if place is None else Tier.DISK

    def _load(self, ref: Ref) -> tuple[Header, Tensor, Tier] | None:
        """A record from the nearest place; None, and dropped, where it is not whole."""
        record = self._memory.get(ref)
        if record is not None:
            return parse(octets(record)), record, Tier.MEMORY
        found = self._from_disk(ref)
        if found is None:
            return None
        self.counters.read_bytes += ref.nbytes
        self._memory.offer(ref, found[1])
        return (*found, Tier.DISK)

    def _from_disk(self, ref: Ref) -> tuple[Header, Tensor] | None:
        record = self._disk.read(ref)
        try:
            if record is None:
                raise DamagedError("the shard ends before")
            header = self.codec.check(record)
            if (header.sample, header.layers) != (ref.sample, ref.layers):
                raise DamagedError("another record stands there")
            return header, record
        except DamagedError:
            self.counters.damaged += 1
            self._memory.drop(ref)
            left = [other for other in self._samples[ref.sample] if other is not ref]
            self._samples[ref.sample] = left
            if not left:
                del self._samples[ref.sample]
            return None

    def _places(self, layers: Iterable[str] | None) -> frozenset[int]:
        places = self._all if layers is None else frozenset(map(self.codec.place, layers))
        if not places:
            raise ValueError("no layers are asked for")
        return places

    def _here(self, sample: int) -> frozenset[int]:
        return frozenset(place for ref in self._samples.get(sample, ()) for place in ref.layers)

    def _tier(self, sample: int) -> Tier:
        return Tier.DISK if all(ref.shard is not None for ref in self._samples[sample]) else Tier.MEMORY

    def _refs(self) -> list[Ref]:
        return [ref for refs in self._samples.values() for ref in refs]
