"""Who has what of the activation cache: every device says what lies on its disk, and all know it of all.

Whatever a run has to do with its cache follows from this and from the plan that will read it
(`plan/training/redistribute.py`), whichever devices filled it, under which plan, and what became of them since.
"""

from __future__ import annotations

from edgempi.comm import World
from edgempi.finetune.caching import RunCache
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import Holding


def held_by_all(world: World, cache: RunCache, costs: Costs) -> tuple[Holding, ...]:
    """For each sample of the run, by its number, the devices that have layers of it. Collective: every rank.

    A planner's layer is one or several units; who lacks one of these lacks the layer.

    Args:
        world: all ranks.
        cache: of this device.
        costs: what the planner's layers are.
    """
    cached = set(cache.cache.key.layers)
    layers = [cached.intersection(costs.units((layer, layer + 1))) for layer in range(costs.size)]
    known: dict[frozenset[str], int] = {}
    own: dict[int, list[int]] = {}
    for number, units in enumerate(cache.cache.held(cache.ids)):
        if units not in known:
            known[units] = sum(1 << layer for layer, wanted in enumerate(layers) if wanted and wanted <= units)
        if known[units]:
            own.setdefault(known[units], []).append(number)
    found: list[list[tuple[int, int]]] = [[] for _ in cache.ids]
    for rank, word in enumerate(world.all_gather_json(list(own.items()))):
        for bits, numbers in word:
            for number in numbers:
                found[number].append((rank, bits))
    return tuple(map(tuple, found))
