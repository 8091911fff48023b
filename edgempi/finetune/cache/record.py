"""The frame of a record: what one device cached of one sample, in bytes that say themselves whether they are whole.

    bytes    field
    4        magic
    1        kind: a sample's layers, or the note that a sample was deleted
    1        zero
    2        number of layers
    8        tag of the key
    8        sample
    8        bytes of the body
    4        CRC-32 of the body
    4        CRC-32 of all of the header but this field, with the table
    8 each   table: a layer's place in the key, its tokens
    ...      body (`codec.py`)

All little-endian. A record is a unit of exchange too: devices pass it on as it is. Headers are multiples of eight
bytes, so that the elements of a body in a buffer of its own are aligned.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

MAGIC = b"eAct"
SAMPLE, DELETED = 1, 2
FIXED = struct.Struct("<4sBxHQQQII")
ROW = struct.Struct("<II")
FIXED_BYTES = FIXED.size
LARGEST_BODY_BYTES = 1 << 40

Buffer: TypeAlias = bytes | bytearray | memoryview


class DamagedError(ValueError):
    """Bytes that are no whole record."""


@dataclass(frozen=True, slots=True)
class Header:
    """The frame of one record.

    Args:
        kind: `SAMPLE` or `DELETED`.
        tag: of the key.
        sample: which.
        table: (place of the layer in the key, its tokens), in the body's order.
        body_bytes: length of the body.
        body_crc: its CRC-32.
    """

    kind: int
    tag: int
    sample: int
    table: tuple[tuple[int, int], ...]
    body_bytes: int
    body_crc: int

    @property
    def header_bytes(self) -> int:
        """Where the body starts."""
        return header_bytes(len(self.table))

    @property
    def nbytes(self) -> int:
        """Of the whole record."""
        return self.header_bytes + self.body_bytes

    @property
    def layers(self) -> tuple[int, ...]:
        """Places of the layers in the key."""
        return tuple(layer for layer, _ in self.table)

    def pack(self) -> bytes:
        """The header's bytes."""
        table = b"".join(ROW.pack(*row) for row in self.table)
        bare = self._fixed(0)[:-4]
        return self._fixed(zlib.crc32(bare + table)) + table

    def _fixed(self, crc: int) -> bytes:
        return FIXED.pack(
            MAGIC, self.kind, len(self.table), self.tag, self.sample, self.body_bytes, self.body_crc, crc
        )  # fmt: skip


def header_bytes(layers: int) -> int:
    """Of a record with that many layers."""
    return FIXED_BYTES + layers * ROW.size


def deleted(tag: int, sample: int) -> bytes:
    """The note that a sample was deleted."""
    return Header(DELETED, tag, sample, (), 0, 0).pack()


def table_bytes(buffer: Buffer) -> int:
    """How long the table behind the fixed part in `buffer` is; raises `DamagedError` where that is none."""
    if len(buffer) < FIXED_BYTES:
        raise DamagedError(f"{len(buffer)} bytes are no header")
    magic, _, count, *_ = FIXED.unpack_from(buffer)
    if magic != MAGIC:
        raise DamagedError("no record starts here")
    return int(count) * ROW.size


def parse(buffer: Buffer) -> Header:
    """The header that `buffer` starts with; raises `DamagedError` unless it is whole."""
    length = FIXED_BYTES + table_bytes(buffer)
    if len(buffer) < length:
        raise DamagedError("the header is cut short")
    _, kind, count, tag, sample, body_bytes, body_crc, crc = FIXED.unpack_from(buffer)
    if zlib.crc32(bytes(buffer[: FIXED_BYTES - 4]) + bytes(buffer[FIXED_BYTES:length])) != crc:
        raise DamagedError("the header's checksum differs")
    if kind not in (SAMPLE, DELETED) or body_bytes > LARGEST_BODY_BYTES:
        raise DamagedError(f"kind {kind} with {body_bytes} bytes is unknown")
    table = tuple(ROW.unpack_from(buffer, FIXED_BYTES + row * ROW.size) for row in range(count))
    return Header(kind, tag, sample, table, body_bytes, body_crc)


def check(buffer: Buffer) -> Header:
    """The header of a record that `buffer` holds exactly; raises `DamagedError` unless all of it is right."""
    header = parse(buffer)
    if len(buffer) != header.nbytes:
        raise DamagedError(f"{len(buffer)} bytes instead of {header.nbytes}")
    if zlib.crc32(memoryview(buffer)[header.header_bytes :]) != header.body_crc:
        raise DamagedError("the body's checksum differs")
    return header


def split(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    """The records in buffers that each hold one or several, end to end; raises `DamagedError` where none starts."""
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest.nbytes:
            nbytes = min(parse(rest).nbytes, rest.nbytes)
            yield rest[:nbytes]
            rest = rest[nbytes:]
