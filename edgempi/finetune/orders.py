"""The order of the epochs that read from the cache: a sample stays with the devices that have its activations.

The first epoch is in the order of `data/order.py`. After it the cache is redistributed, and each place of an epoch is
given a sample of those that its devices keep: shuffled anew for each epoch, but among those only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edgempi.config.files import write_atomic
from edgempi.finetune.data.order import order
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import aligned, owners, pinned_order

Keeper = tuple[int, ...]
"""The devices that have a sample's activations, one of each stage."""


def cached_order(
    seed: int, epoch: int, count: int, size: int, first: Plan, second: Plan, costs: Costs, filled: int = 0
) -> np.ndarray:  # fmt: skip
    """The numbers of all samples in the order of an epoch after the first one, (count,) of int64.

    Args:
        seed: of the data's order.
        epoch: counted from 0.
        count: samples in all.
        size: rows of a mini-batch.
        first: under which the cache was filled.
        second: under which it is read.
        costs: bytes of the layers' cache.
        filled: the epoch in whose order that was; a run that is resumed without its cache fills it again.
    """
    kept: list[Keeper] = []
    takers: list[Keeper] = []
    for rows in _batches(count, size):
        places = places_of(second, costs, rows)
        chosen = aligned(owners(first, costs, rows), owners(second, costs, rows), costs)
        whose = dict(zip(chosen, places, strict=True))
        kept += [whose[row] for row in range(rows)]
        takers += places
    numbers = {keeper: number for number, keeper in enumerate(dict.fromkeys(takers))}
    found = pinned_order(
        order(seed, filled, count).tolist(), [numbers[keeper] for keeper in kept],
        order(seed, epoch, count).tolist(), [numbers[keeper] for keeper in takers],
    )  # fmt: skip
    return np.array(found, np.int64)


def places_of(plan: Plan, costs: Costs, rows: int) -> list[Keeper]:
    """Who works on each place of a mini-batch, stage by stage."""
    return list(zip(*(held for _, held in owners(plan, costs, rows)), strict=True))


def write_order(path: Path, numbers: np.ndarray) -> None:
    """Write down the order of the running epoch: on other devices it could not be made again."""
    write_atomic(path, "\n".join(map(str, numbers.tolist())) + "\n")


def read_order(path: Path) -> np.ndarray:
    """What `write_order` wrote."""
    return np.array(path.read_text(encoding="utf-8").split(), np.int64)


def _batches(count: int, size: int) -> Iterable[int]:
    """Rows of each mini-batch."""
    return (min(size, count - start) for start in range(0, count, size))
