"""Safetensors files written tensor by tensor, with a digest of each: who reads some of them checks just these.

The format's header names every tensor's place and stands first. Room is kept for it (its JSON may end in spaces) and
filled last, so that tensors which come from other devices pass through memory one at a time.
Source: the safetensors format, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.cache.files import read_all, write_all

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
ENTRY_BYTES = 256
"""Room in the header for what is said of one tensor, beside its name twice."""


class DamagedError(UserError):
    """A file that is not what was once written."""

    def __init__(self, path: Path, value: object, rule: str) -> None:
        super().__init__(
            f"training checkpoint {path}", value=value, rule=rule,
            remedy="Delete this checkpoint, and resume from the one before it",
        )  # fmt: skip


@dataclass(frozen=True)
class Seal:
    """What a file is known by: its size, and a digest of its header, which holds those of its tensors."""

    nbytes: int
    header: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Seal:
    """Write a new file and make it durable; each tensor is asked for once, in order, and let go.

    Args:
        path: of the file.
        tensors: by name; a mapping that fetches them will do.

    Raises:
        OSError: there is no room, or no right to write.
    """
    names = list(tensors)
    room = -(-sum(2 * len(name) + ENTRY_BYTES for name in names) // 8) * 8 + 64
    entries: dict[str, Any] = {}
    digests = {"format": "pt"}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        offset = 0
        for name in names:
            tensor = tensors[name].detach().cpu().contiguous()
            data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            write_all(descriptor, data, 8 + room + offset)
            stop = offset + data.nbytes
            entries[name] = {"dtype": NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [offset, stop]}
            digests[name] = _digest(data)
            offset = stop
        header = json.dumps({"__metadata__": digests, **entries}, separators=(",", ":")).encode()
        assert len(header) <= room, "room for the header is reckoned from names"
        header = header.ljust(room)
        write_all(descriptor, room.to_bytes(8, "little") + header, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Seal(8 + room + offset, _digest(header))


class TensorFile:
    """A file that `write_tensors` wrote, read by `pread`; a context manager.

    Args:
        path: of the file.
        seal: what it is known by.

    Raises:
        DamagedError: it is not there, or its size or header is another.
    """

    def __init__(self, path: Path, seal: Seal) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamagedError(path, error.strerror, "it can be read") from error
        try:
            self._entries, self._digests, self._start = self._header(seal)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, in the file's order."""
        return tuple(self._entries)

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            DamagedError: its bytes are not those that were written.
        """
        about = self._entries[name]
        tensor = torch.empty(about["shape"], dtype=DTYPES[about["dtype"]])
        data = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        begin, stop = about["data_offsets"]
        if stop - begin != data.nbytes or prod(about["shape"]) != tensor.numel():
            raise DamagedError(self._path, f"{name} has {stop - begin} bytes", "its bytes follow from its shape")
        if read_all(self._descriptor, data, self._start + begin) < data.nbytes or _digest(data) != self._digests[name]:
            raise DamagedError(self._path, f"{name} has other bytes", "a tensor is what was written")
        return tensor

    def check(self) -> None:
        """Read all tensors, one after another.

        Raises:
            DamagedError: the bytes of one are not those that were written.
        """
        for name in self.names:
            self.read(name)

    def _header(self, seal: Seal) -> tuple[dict[str, Any], dict[str, str], int]:
        size = os.fstat(self._descriptor).st_size
        if size != seal.nbytes:
            raise DamagedError(self._path, f"{size} bytes", f"it was written with {seal.nbytes}")
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        text = os.pread(self._descriptor, min(length, size), 8)
        if _digest(text) != seal.header:
            raise DamagedError(self._path, "another header", "its header is what was written")
        header = json.loads(text)
        return header, header.pop("__metadata__"), 8 + length


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
