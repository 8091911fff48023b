"""One shard: a file of records, end to end, that only ever grows at its end.

Whatever happened to it, reading it through finds every record that is whole: a broken one is stepped over, and where
even its length is unknown, the next header that checks out is searched for.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from edgempi.finetune.cache.files import read_all
from edgempi.finetune.cache.record import FIXED_BYTES, MAGIC, DamagedError, Header, parse, table_bytes

SUFFIX = ".shard"
CHUNK_BYTES = 1 << 20


@dataclass
class Scan:
    """What a shard holds from some byte on.

    Args:
        records: (offset, header) of every whole record of the key, notes of deletion included, in order.
        end: behind the last byte that belongs to a known record; nothing after it is of use.
        broken: how many pieces were not whole.
        broken_bytes: of them.
    """

    records: list[tuple[int, Header]] = field(default_factory=list)
    end: int = 0
    broken: int = 0
    broken_bytes: int = 0


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"{number:06d}{SUFFIX}"


def shard_numbers(folder: Path) -> list[int]:
    """The shards in a folder, oldest first."""
    return sorted(int(path.stem) for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def scan(path: Path, tag: int, start: int = 0) -> Scan:
    """Read a shard from byte `start`, where a record begins, to its end, checking every checksum."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        found, position = Scan(end=start), start
        while position < size:
            header = _header_at(descriptor, position)
            if header is None or position + header.nbytes > size:
                following = _next_header(descriptor, position + 1, size)
                found.broken += 1
                found.broken_bytes += following - position
                position = following
                continue
            if header.tag == tag and _body_crc(descriptor, position, header) == header.body_crc:
                found.records.append((position, header))
            else:
                found.broken += 1
                found.broken_bytes += header.nbytes
            position += header.nbytes
            found.end = position
        return found
    finally:
        os.close(descriptor)


def _header_at(descriptor: int, offset: int) -> Header | None:
    try:
        fixed = os.pread(descriptor, FIXED_BYTES, offset)
        return parse(os.pread(descriptor, FIXED_BYTES + table_bytes(fixed), offset))
    except DamagedError:
        return None


def _next_header(descriptor: int, offset: int, size: int) -> int:
    """Where the next whole header stands, or the file's end."""
    while offset < size:
        # Chunks overlap, so that a header across two of them is seen.
        chunk = os.pread(descriptor, CHUNK_BYTES + len(MAGIC) - 1, offset)
        at = chunk.find(MAGIC)
        while at >= 0:
            if _header_at(descriptor, offset + at) is not None:
                return offset + at
            at = chunk.find(MAGIC, at + 1)
        offset += CHUNK_BYTES
    return size


def _body_crc(descriptor: int, offset: int, header: Header) -> int:
    crc, position, end = 0, offset + header.header_bytes, offset + header.nbytes
    buffer = memoryview(bytearray(min(CHUNK_BYTES, header.body_bytes)))
    while position < end:
        part = buffer[: min(CHUNK_BYTES, end - position)]
        count = read_all(descriptor, part, position)
        if count < part.nbytes:
            return ~header.body_crc
        crc, position = zlib.crc32(part, crc), position + count
    return crc
