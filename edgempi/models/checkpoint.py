"""Read slices of safetensors files by `pread`: a rank touches the bytes that its share names and no others.

The format is a little-endian u64 with the header's length, the header (JSON: name -> dtype, shape, data offsets), and
the data, row-major. Memory maps are avoided on purpose: pages that a map touches are neither counted nor bounded.
Source: the safetensors format, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.plan.apportion import Span

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""File dtypes that hold weights; anything else is refused by name."""
LARGEST_HEADER_BYTES = 100_000_000
SAMPLE_BYTES = 64
"""How much of a tensor the fingerprint reads, at each of three places."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """Where one tensor stands: its name and file, dtype name, shape, and byte offset from the start of the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors of a Hugging Face folder, single-file or sharded; reading is by slice.

    Args:
        folder: a folder with `model.safetensors`, or an index and its shards.

    Raises:
        UserError: no such folder, no safetensors in it (a pickle is refused with the remedy), a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_bytes = 0
        self._files: dict[Path, int] = {}
        self.entries: dict[str, Entry] = {}
        files, self.header_bytes = _weight_files(folder)
        try:
            for path in files:
                self.entries.update(self._read_header(path))
        except UserError:
            self.__exit__()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    @property
    def fingerprint(self) -> str:
        """A digest of every tensor's name, form and place and of a few of its bytes: unlike for two fine-tunes."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            digest.update(f"{name} {entry.path.name} {entry.dtype} {entry.shape} {entry.offset}\n".encode())
            nbytes = prod(entry.shape) * DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else 0
            for start in sorted({0, nbytes // 2, max(0, nbytes - SAMPLE_BYTES)}):
                count = min(SAMPLE_BYTES, nbytes - start)
                digest.update(os.pread(self._files[entry.path], count, entry.offset + start))
        return digest.hexdigest()[:16]

    def read(self, name: str, dtype: torch.dtype, dim: int = 0, span: Span | None = None) -> Tensor:
        """Read `span` of a tensor along `dim`, whole where no span is given, and convert it.

        Args:
            name: the tensor's name in the checkpoint.
            dtype: what the result is converted to.
            dim: 0, or 1 where each row of a matrix gives a part.
            span: the range along `dim`.

        Returns:
            A contiguous tensor of its own memory.
        """
        entry = self.entries[name]
        stored = check_dtype(entry)
        start, stop = span if span is not None else (0, entry.shape[dim] if entry.shape else 1)
        shape = list(entry.shape)
        if shape:
            shape[dim] = stop - start
        result = torch.empty(shape, dtype=stored)
        if result.numel():
            buffer = memoryview(result.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            inner = prod(entry.shape[dim + 1 :]) * stored.itemsize
            outer = prod(entry.shape[:dim])
            run = (stop - start) * inner
            stride = entry.shape[dim] * inner if entry.shape else inner
            if outer == 1 or run == stride:
                self._fill(entry, entry.offset + start * inner, buffer)
            else:
                for row in range(outer):
                    first = entry.offset + row * stride + start * inner
                    self._fill(entry, first, buffer[row * run : (row + 1) * run])
        return result.to(dtype)

    def _fill(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        descriptor = self._files[entry.path]
        while buffer.nbytes:
            count = os.preadv(descriptor, [buffer], offset)
            if count == 0:
                raise _damaged(entry.path, f"ends at byte {offset}", "the data its header names is all there")
            self.data_bytes += count
            buffer, offset = buffer[count:], offset + count

    def _read_header(self, path: Path) -> Mapping[str, Entry]:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _damaged(path, str(error.strerror), "it can be read") from error
        self._files[path] = descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _damaged(path, "no regular file", "it is a file")
        size = os.fstat(descriptor).st_size
        prefix = os.pread(descriptor, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(LARGEST_HEADER_BYTES, size - 8):
            raise _damaged(path, f"header of {length} bytes in a file of {size}", "the header fits in the file")
        text = os.pread(descriptor, length, 8)
        self.header_bytes += 8 + length
        try:
            header = json.loads(text)
            header.pop("__metadata__", None)
            entries, end = {}, 8 + length
            for name, about in header.items():
                begin, stop = about["data_offsets"]
                entry = Entry(name, path, str(about["dtype"]), tuple(map(int, about["shape"])), 8 + length + int(begin))
                stored = DTYPES.get(entry.dtype)
                if stored is not None and stop - begin != prod(entry.shape) * stored.itemsize:
                    raise _damaged(path, f"{name} has {stop - begin} bytes", "a tensor's bytes follow from its shape")
                if begin < 0 or stop < begin:
                    raise _damaged(path, f"{name} at {begin}..{stop}", "offsets rise from zero")
                entries[name] = entry
                end = max(end, 8 + length + int(stop))
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(path, f"header: {error}", "the header is the JSON that safetensors writes") from error
        if end > size:
            raise _damaged(path, f"{size} bytes", f"its header names {end}")
        return entries


def check_dtype(entry: Entry) -> torch.dtype:
    """The dtype of a tensor in a file; a `UserError` where it is none that weights are stored in."""
    if entry.dtype not in DTYPES:
        raise UserError(
            f"tensor {entry.name} in {entry.path.name}", value=f"dtype {entry.dtype}",
            rule=f"weights are stored as one of {', '.join(DTYPES)}",
            remedy="Convert the checkpoint, e.g. model.to(torch.bfloat16).save_pretrained(...)",
        )  # fmt: skip
    return DTYPES[entry.dtype]


def _weight_files(folder: Path) -> tuple[list[Path], int]:
    """The files that hold the weights, and the bytes read to know them."""
    if not folder.is_dir():
        raise UserError(
            "model folder", value=folder, rule="it is a folder on every host, or a hub id",
            remedy="Correct model.path, or copy the folder to the same place on each host",
        )  # fmt: skip
    if (folder / INDEX).exists():
        text = (folder / INDEX).read_bytes()
        try:
            # Only the name counts: an index must not lead out of its folder.
            names = {Path(name).name for name in json.loads(text)["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _damaged(folder / INDEX, f"{error}", "it maps tensor names to files") from error
        paths = [folder / name for name in sorted(names)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise UserError(
                f"checkpoint {folder}", value=f"missing {', '.join(missing)}", rule="all files of the index are there",
                remedy="Download or copy the missing shards",
            )  # fmt: skip
        return paths, len(text)
    if (folder / SINGLE).exists():
        return [folder / SINGLE], 0
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise UserError(
            f"checkpoint {folder}", value=f"only {', '.join(pickles)}",
            rule="weights are read from safetensors, never unpickled (a pickle can run code)",
            remedy="Convert it once on a machine you trust: AutoModel.from_pretrained(folder).save_pretrained(folder)",
        )  # fmt: skip
    raise UserError(
        f"checkpoint {folder}", value="no weights", rule=f"it holds {SINGLE} or {INDEX}",
        remedy="Point model.path to a Hugging Face folder",
    )  # fmt: skip


def _damaged(path: Path, value: str, rule: str) -> UserError:
    return UserError(f"checkpoint file {path}", value=value, rule=rule, remedy="Download or copy the file again")
