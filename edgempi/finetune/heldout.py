"""Held-out rows from the cache: the backbone's activations of them change no more than those of rows to train on.

While the backbone runs anyway it judges them, and what it computed is put aside. Epochs that read from the cache have
them read as well, in the form in which activations are cached, so that the backbone need not stay for them. They lie
where the plan of `train` has them, under which they are judged.
"""

from __future__ import annotations

import numpy as np

from edgempi.comm import World
from edgempi.finetune.caching import RunCache, own_numbers
from edgempi.finetune.data.order import batches
from edgempi.finetune.evaluate import by_length
from edgempi.finetune.executor import Executor
from edgempi.finetune.minibatch import Keep, ReaderOf
from edgempi.finetune.picked import Data
from edgempi.finetune.refill import has_room
from edgempi.plan.plan import Plan


class HeldOut:
    """The rows that a run is judged by, as one device sees them. Every rank makes one, and calls its methods alike.

    Args:
        world: all ranks.
        data: the rows.
        cache: of this device, for these rows.
        plan: under which they are judged.
    """

    def __init__(self, world: World, data: Data, cache: RunCache, plan: Plan) -> None:
        self._world, self._data, self._cache, self._plan = world, data, cache, plan
        self._units = [unit for unit in plan.stage_of(world.rank).units if unit in cache.cache.key.layers]
        self._numbers = by_length(data)

    @property
    def read(self) -> ReaderOf:
        """Gives their activations, after `begin`."""
        return self._cache.read

    @property
    def keep(self) -> Keep | None:
        """Takes them where they are computed; None where the disk is bounded, and rows to train on come first."""
        return self._cache.keep if self._cache.cache.budget.disk_bytes is None else None

    def begin(self) -> None:
        """Start to read ahead, in the order in which rows are judged."""
        self._cache.begin(self._numbers, self._data.size, self._plan, self._world.rank, self._units)

    def fill(self, executor: Executor) -> None:
        """Run the backbone over the mini-batches that are not there whole, as long as there is room for them.

        Collective: every rank.
        """
        lacking = self.lacking()
        for place, picked in enumerate(self._data.picked(self._numbers)):
            if place in lacking and has_room(self._world, self._cache):
                executor.evaluate(picked.rows, picked.rows_of, keep=self._cache.keep)

    def lacking(self) -> set[int]:
        """The mini-batches of which some device has not all of its part. Collective: every rank."""
        parts = enumerate(batches(self._numbers, self._data.size))
        own = [place for place, batch in parts if self._units and self._lacks(batch)]
        return {place for word in self._world.all_gather_json(own) for place in word}

    def _lacks(self, batch: np.ndarray) -> bool:
        mine = own_numbers(batch, self._data.size, self._plan, self._world.rank)
        return bool(self._cache.cache.missing((self._cache.ids[number] for number in mine), self._units))
