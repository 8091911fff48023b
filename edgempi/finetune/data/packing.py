"""Samples as a few flat arrays, to be sent to other ranks or written down; nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from edgempi.finetune.data.samples import Sample

PARTS = ("labels", "enc_ids", "dec_ids", "types")


def pack(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Flat arrays of the samples of one template: `keys` (n, 16) uint8, each part end to end, `PART_ends` (n,) int64.

    Labels of one value a row have no `labels_ends`.
    """
    keys = np.frombuffer(bytes.fromhex("".join(s.key for s in samples)), np.uint8).reshape(len(samples), 16)
    arrays = {"keys": keys}
    for name in PARTS:
        parts = [getattr(s, name) for s in samples]
        if not parts or parts[0] is None:
            continue
        arrays[name] = np.concatenate([np.atleast_1d(part) for part in parts])
        if parts[0].ndim:
            arrays[f"{name}_ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return arrays


def unpack(arrays: Mapping[str, np.ndarray]) -> tuple[Sample, ...]:
    """The samples that `pack` was given; their arrays are views."""
    count = len(arrays["keys"])
    columns: dict[str, list[np.ndarray]] = {}
    for name in PARTS:
        if name not in arrays:
            continue
        if f"{name}_ends" in arrays:
            edges = [0, *arrays[f"{name}_ends"].tolist()]
            columns[name] = [arrays[name][start:stop] for start, stop in pairwise(edges)]
        else:
            columns[name] = [arrays[name][i : i + 1].reshape(()) for i in range(count)]
    keys = (bytes(key).hex() for key in arrays["keys"])
    return tuple(Sample(key, **{name: column[i] for name, column in columns.items()}) for i, key in enumerate(keys))
