"""Samples from the parent to the ranks: files that rank 0 reads, then flat arrays as raw buffers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from edgempi.comm import World
from edgempi.errors import UserError
from edgempi.finetune.data.packing import pack, unpack
from edgempi.finetune.data.samples import Sample


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples of one template to a file that ends in `.npz`.

    Raises:
        UserError: there is no room for it, or no right to write.
    """
    try:
        with open(path, "wb") as file:
            np.savez(file, **pack(samples))  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"samples {path}", value=error.strerror or error, rule="the run's folder has room for them",
            remedy="Free some space, or set task.folder to another one",
        ) from error  # fmt: skip


def shared_samples(world: World, path: Path) -> tuple[Sample, ...]:
    """The samples of a file of rank 0, on every rank. Collective: every rank.

    Raises:
        UserError: rank 0 cannot read the file.
    """
    own = _read(path) if world.leads else {}
    text = json.dumps([[name, array.dtype.str, list(array.shape)] for name, array in own.items()])
    arrays = {}
    for name, dtype, shape in json.loads(world.broadcast_text(text if world.leads else None)):
        array = own[name] if world.leads else np.empty(shape, dtype)
        if array.nbytes:
            octets = torch.from_numpy(array.reshape(-1).view(np.uint8))
            if world.leads:
                for rank in range(1, world.size):
                    world.send(octets, rank)
            else:
                world.receive(octets, 0)
        arrays[name] = array
    return unpack(arrays)


def _read(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.ascontiguousarray(file[name]) for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(
            "samples", value=f"{path}: {error}", rule="rank 0 reads them on its own host",
            remedy="Start edgempi on the first device of the cluster, in a folder that exists there",
        ) from error  # fmt: skip
