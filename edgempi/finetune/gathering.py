"""Before epochs read from the cache: what of it is lost is computed again, and the rest goes to where it is read.

The same for a run that has just filled its cache, for one that finds a cache of an earlier run, and for one that is
resumed on devices of which some have gone: what is to be done follows from who has what (`possession`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgempi.comm import World
from edgempi.finetune.caching import RunCache
from edgempi.finetune.executor import Executor
from edgempi.finetune.orders import Homes, homes_of
from edgempi.finetune.picked import Data
from edgempi.finetune.possession import held_by_all
from edgempi.finetune.redistribute import Moved, lacking, move_cache, shift
from edgempi.finetune.refill import Told, has_room, refill
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import lost, reads

ATTEMPTS = 2
"""A record that proves to be damaged when it is sent is found missing only then."""


class Gathering:
    """One run's cache, as one device sees it. Every rank makes one, and calls its methods alike.

    Args:
        world: all ranks.
        data: the samples.
        cache: of this device.
        plan: under which epochs read it.
        costs: bytes of the layers' cache.
        told: told how far a refill is.

    Attributes:
        seen: the order of the epoch that filled the cache, or with which the run goes on; see `homes_of`.
        moved: what moved so far; None before anything did.
        refilled: samples that were computed again, on all devices together.
    """

    def __init__(self, world: World, data: Data, cache: RunCache, plan: Plan, costs: Costs, told: Told) -> None:
        self.seen: np.ndarray | None = None
        self.moved: Moved | None = None
        self.refilled = 0
        self._homes: Homes | None = None
        self._world, self._data, self._cache, self._plan, self._costs = world, data, cache, plan, costs
        self._told = told
        self._reads = reads(plan, costs)

    @property
    def homes(self) -> Homes:
        """Where samples are read, after `bring`."""
        assert self._homes is not None, "bring comes first"
        return self._homes

    def is_empty(self) -> bool:
        """Whether there is no sample of which all layers are cached by anybody. Collective: every rank."""
        held = held_by_all(self._world, self._cache, self._costs)
        return len(lost(held, self._reads)) == len(held)

    def bring(self, backbone: Callable[[], Executor]) -> bool:
        """Bring the cache to where it is read; whether all of it is there. Collective: every rank.

        Args:
            backbone: gives an executor that runs it; not called where nothing is lost.
        """
        for _ in range(ATTEMPTS):
            held = held_by_all(self._world, self._cache, self._costs)
            # Homes do not depend on who computes again what is lost: they are those of before the loss, where they can.
            self._homes = homes_of(held, self._plan, self._costs, self._data.size, self.seen)
            gone = lost(held, self._reads)
            if gone and has_room(self._world, self._cache):
                self.refilled += refill(self._world, backbone(), self._data, self._cache, gone, self._told)
                held = held_by_all(self._world, self._cache, self._costs)
                gone = lost(held, self._reads)
            ids, layers = self._cache.ids, self._cache.cache.key.layers
            wanted = shift(held, self._homes.keepers, self._plan, self._costs, layers, ids)
            if gone:
                moved = Moved(missing=lacking(self._cache.cache, wanted, self._world.rank))
            else:
                moved = move_cache(self._world, self._cache.cache, wanted)
            self.moved = moved if self.moved is None else self.moved.then(moved)
            if not any(self._world.all_gather_json(len(moved.missing))):
                return True
            if not has_room(self._world, self._cache):
                break
        return False
