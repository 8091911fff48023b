"""The order of the epochs that read from the cache: a sample stays with the devices that have its activations.

Each sample has a home, the devices that will read it; homes follow from who has what, so that as little as can be is
moved. Each place of an epoch is given a sample of those whose home its devices are: shuffled anew for each epoch, but
among those only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgempi.finetune.data.order import order
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import Holding, Keeper, aligned, keepers, pinned_order, reads


@dataclass(frozen=True)
class Homes:
    """Where a run's samples are read.

    Attributes:
        keepers: the devices of each sample, by its number, one of each stage.
        takers: the devices of each place of an epoch.
        size: rows of a mini-batch; the last one of an epoch may have fewer.
    """

    keepers: tuple[Keeper, ...]
    takers: tuple[Keeper, ...]
    size: int

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The numbers of all samples as an epoch sees them, (count,) of int64.

        Args:
            seed: of the data's order.
            epoch: counted from 0.
        """
        shuffled = order(seed, epoch, len(self.keepers)).tolist()
        return np.array(pinned_order(range(len(self.keepers)), self.keepers, shuffled, self.takers), np.int64)

    def fitted(self, numbers: np.ndarray) -> np.ndarray:
        """The order of an epoch that was begun elsewhere: the same mini-batches, each row with a device that reads it.

        Args:
            numbers: the order in which it was begun, the one that homes were made for.
        """
        found: list[int] = []
        for start in range(0, len(numbers), self.size):
            part = numbers[start : start + self.size].tolist()
            takers = self.takers[start : start + self.size]
            found += pinned_order(part, [self.keepers[number] for number in part], part, takers)
        return np.array(found, np.int64)


def homes_of(held: Sequence[Holding], plan: Plan, costs: Costs, size: int, seen: np.ndarray | None = None) -> Homes:
    """Give each sample a home. Pure: every rank works out the same.

    Args:
        held: who has what, of each sample by its number.
        plan: under which epochs read it.
        costs: bytes of the layers' cache.
        size: rows of a mini-batch.
        seen: the order of an epoch whose mini-batches shall each find their rows at home: one that is to be gone on
            with, or the one that filled the cache, whose mini-batches the planner reckons with. None: any will do, and
            less is to be moved.
    """
    count, layers = len(held), reads(plan, costs)
    of_rows = {rows: keepers(plan, costs, rows) for rows in {min(size, count), count % size} if rows}
    takers = [keeper for start in range(0, count, size) for keeper in of_rows[min(size, count - start)]]
    numbers = list(range(count)) if seen is None else seen.tolist()
    step = max(1, count if seen is None else size)
    known: dict[tuple[Holding, ...], tuple[int, ...]] = {}
    found: list[Keeper] = [()] * count
    for start in range(0, count, step):
        part, places = numbers[start : start + step], takers[start : start + step]
        alike = tuple(held[number] for number in part)
        if alike not in known:  # in most mini-batches the same devices have the same places
            known[alike] = aligned(alike, places, layers, costs)
        for place, row in zip(places, known[alike], strict=True):
            found[part[row]] = place
    return Homes(tuple(found), tuple(takers), size)
