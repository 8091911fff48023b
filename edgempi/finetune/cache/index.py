"""The index: where each live record stands, so that opening a cache reads one file instead of all shards.

It is a shortcut and never the truth: shards say themselves what they hold. A line of JSON (tag of the key, bytes of
each shard that are covered, the sets of layers, checksum of the rest), then one row per record. What was appended
after it was written is found by reading on from where it ends.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgempi.finetune.cache.files import write_whole

INDEX_FILE = "index"
ENTRY = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("nbytes", "<u8"), ("shard", "<u4"), ("layers", "<u4")])
ENTRY_BYTES = ENTRY.itemsize


@dataclass(slots=True, eq=False)
class Ref:
    """One record and where it stands.

    Args:
        sample: whose.
        layers: places of its layers in the key.
        nbytes: its length.
        shard: number of its shard; None where it is in memory only.
        offset: its first byte there.
    """

    sample: int
    layers: tuple[int, ...]
    nbytes: int
    shard: int | None = None
    offset: int = 0


def save_index(folder: Path, tag: int, covered: Mapping[int, int], refs: Iterable[Ref]) -> int:
    """Write the index of the refs that stand in shards; returns its bytes.

    Args:
        folder: of the cache.
        tag: of the key.
        covered: bytes of each shard that the refs speak for.
        refs: all live records.

    Raises:
        OSError: it could not be written; the one before still holds.
    """
    sets: dict[tuple[int, ...], int] = {}
    rows = [
        (ref.sample, ref.offset, ref.nbytes, ref.shard, sets.setdefault(ref.layers, len(sets)))
        for ref in refs
        if ref.shard is not None
    ]
    table = np.array(rows, dtype=ENTRY).tobytes()
    head = {"tag": tag, "covered": sorted(covered.items()), "layers": list(sets), "records": len(rows)}
    crc = zlib.crc32(table, zlib.crc32(json.dumps(head).encode()))
    data = json.dumps(head | {"crc": crc}).encode() + b"\n" + table
    write_whole(folder / INDEX_FILE, data)
    return len(data)


def load_index(folder: Path, tag: int) -> tuple[dict[int, int], list[Ref]] | None:
    """The covered bytes by shard and the records; None where there is no whole index of that key."""
    try:
        line, _, table = (folder / INDEX_FILE).read_bytes().partition(b"\n")
        head = json.loads(line)
        crc = head.pop("crc")
        if zlib.crc32(table, zlib.crc32(json.dumps(head).encode())) != crc or head["tag"] != tag:
            return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    sets = [tuple(layers) for layers in head["layers"]]
    refs = [
        Ref(sample, sets[layers], nbytes, shard, offset)
        for sample, offset, nbytes, shard, layers in np.frombuffer(table, dtype=ENTRY).tolist()
    ]
    return dict(head["covered"]), refs
