"""What a cache has lost, computed again: the backbone runs forward over just those samples, and nothing is trained.

So a run goes on after a device, a disk or a part of the data is gone, without an epoch of which most is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgempi.comm import World
from edgempi.finetune.caching import RunCache
from edgempi.finetune.executor import Executor
from edgempi.finetune.picked import Data

Told = Callable[[int, int], None]
"""Told rows that are done, and how many there are to do."""


def refill(
    world: World, executor: Executor, data: Data, cache: RunCache, numbers: Sequence[int], told: Told
) -> int:  # fmt: skip
    """Cache samples anew, each where the executor's plan has it. Collective: every rank.

    Args:
        world: all ranks.
        executor: of a plan with the backbone.
        data: the samples.
        cache: of this device.
        numbers: of the samples, the same on every rank; of equal ones one is run.
        told: see `Told`.

    Returns:
        How many were run, the same on every rank: fewer than asked for once a device has no room for its part.
    """
    each = {cache.ids[number]: number for number in numbers}
    # Long ones first: neighbours need little padding, and what does not fit fails at once.
    chosen = sorted(each.values(), key=lambda number: (-data.samples[number].tokens, number))
    done = 0
    for picked in data.picked(np.array(chosen, np.int64)):
        executor.evaluate(picked.rows, picked.rows_of, keep=cache.keep)
        done += picked.rows
        told(done, len(chosen))
        if not has_room(world, cache):
            break
    return done


def has_room(world: World, cache: RunCache) -> bool:
    """Whether no device has had to refuse a sample yet. Collective: every rank."""
    return not any(world.all_gather_json(cache.cache.counters.refused))
