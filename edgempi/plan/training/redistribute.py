"""From the first epoch's plan to that of the cached epochs: which cached activations and parameters move to whom.

In the first epoch a device caches its stage's layers of the rows that it works on. In the cached epochs it needs the
layers of its stage, all of them where there is one stage, of the rows that it is given then. Which rows those are is
free, since gradients are summed over all: `aligned` gives each device rows of which it has cached a part. For P equal
stages that leaves (P - 1) / P of the cache to be moved (PAC, arXiv 2408.10746), the least there can be.

Rows are places in a mini-batch. A sample stays with the device that has its cache: later epochs are shuffled among the
samples of one device (`pinned_order`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from edgempi.plan.apportion import Span, length
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import microbatch_spans, own_rows
from edgempi.plan.training.costs import Costs, layer_spans

Owners = tuple[tuple[Span, tuple[int, ...]], ...]
"""Of each stage: its layers, and the device of every row of the mini-batch."""


@dataclass(frozen=True)
class CacheMove:
    """Cached activations that go from one device to another: `layers` of the samples at `rows` of every mini-batch."""

    source: int
    target: int
    layers: Span
    rows: tuple[int, ...]
    """Places in the first plan's mini-batch."""
    nbytes: int
    """Of one mini-batch of rows that are as long as the workload's."""


@dataclass(frozen=True)
class ParameterMove:
    """Trained parameters that go from one device to another, with what the optimizer keeps for them."""

    source: int
    target: int
    layers: Span
    tables: tuple[str, ...]
    """Of the parameters that several layers share, those that go along."""
    nbytes: int


@dataclass(frozen=True)
class Redistribution:
    """All that moves between two plans.

    Attributes:
        order: of each row of the second plan's mini-batch, its place in the first plan's.
        cache: for every mini-batch.
        parameters: once.
    """

    order: tuple[int, ...]
    cache: tuple[CacheMove, ...]
    parameters: tuple[ParameterMove, ...]

    def sent(self, batches: float) -> dict[tuple[int, int], float]:
        """Bytes by (source, target) for so many mini-batches."""
        found: dict[tuple[int, int], float] = defaultdict(float)
        for move in self.cache:
            found[move.source, move.target] += batches * move.nbytes
        for parameters in self.parameters:
            found[parameters.source, parameters.target] += parameters.nbytes
        return dict(found)


def owners(plan: Plan, costs: Costs, rows: int) -> Owners:
    """Who works on which row of a mini-batch, stage by stage; stages without layers are left out."""
    batch = microbatch_spans(rows, plan.microbatches)
    found = []
    for stage, layers in zip(plan.stages, layer_spans(plan, costs), strict=True):
        if length(layers):
            held = {row: d for d in stage.devices for m in batch for row in range(*own_rows(stage, d, m))}
            found.append((layers, tuple(held[row] for row in range(rows))))
    return tuple(found)


def redistribute(first: Plan, second: Plan, costs: Costs, rows: int) -> Redistribution:
    """What moves between two plans of whole rows for one model.

    Args:
        first: under which the cache was filled and the parameters were trained.
        second: under which they are used.
        costs: bytes of the layers' cache and parameters.
        rows: of a mini-batch, equal under both. An epoch's last one may have fewer: ask for it apart.
    """
    before, after = owners(first, costs, rows), owners(second, costs, rows)
    order = aligned(before, after, costs)
    return Redistribution(
        order, tuple(_cache_moves(before, after, order, costs)), tuple(_parameters(first, second, costs))
    )


def aligned(before: Owners, after: Owners, costs: Costs) -> tuple[int, ...]:
    """For each row of the later plan, one of the earlier plan's, so that as much as can be stays where it is.

    With one stage, places are filled in the order of what staying saves, each from a row that its device has a part of,
    by augmenting paths: a matching of largest weight. Rows of a pipeline keep their places, since they have one owner
    per stage.
    """
    count = len(before[0][1])
    if len(after) > 1:
        return tuple(range(count))
    (_, later), cache = after[0], {layers: costs.cache_bytes(layers) for layers, _ in before}
    kept = {device: layers for layers, held in before for device in held}
    places = sorted(range(count), key=lambda place: -cache.get(kept.get(later[place], (0, 0)), 0))
    given: dict[int, int] = {}
    """Row to place."""

    def find(place: int, seen: set[int]) -> bool:
        for row in range(count):
            if row not in seen and any(held[row] == later[place] for _, held in before):
                seen.add(row)
                if row not in given or find(given[row], seen):
                    given[row] = place
                    return True
        return False

    without = [place for place in places if not find(place, set())]
    given |= dict(zip((row for row in range(count) if row not in given), without, strict=True))
    return tuple(sorted(range(count), key=lambda row: given[row]))


def pinned_order(
    first: Sequence[int], keepers: Sequence[int], wanted: Sequence[int], takers: Sequence[int]
) -> tuple[int, ...]:
    """The order of a later epoch: each place gets the next sample, of those that its device keeps, in a wanted order.

    Args:
        first: the first epoch's samples in order.
        keepers: for each of them, the device that keeps its cache.
        wanted: the same samples shuffled.
        takers: for each place of the later epoch, the device that works on it; each as often as in `keepers`.
    """
    keeper = dict(zip(first, keepers, strict=True))
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for sample in wanted:
        waiting[keeper[sample]].append(sample)
    return tuple(waiting[device].popleft() for device in takers)


def _cache_moves(before: Owners, after: Owners, order: Sequence[int], costs: Costs) -> list[CacheMove]:
    rows: dict[tuple[int, int, Span], list[int]] = defaultdict(list)
    for layers, held in before:
        for wanted, needed in after:
            part = (max(layers[0], wanted[0]), min(layers[1], wanted[1]))
            for place, row in enumerate(order):
                if length(part) > 0 and held[row] != needed[place]:
                    rows[held[row], needed[place], part].append(row)
    return [
        CacheMove(source, target, part, tuple(sorted(found)), len(found) * costs.cache_bytes(part))
        for (source, target, part), found in rows.items()
        if costs.cache_bytes(part)
    ]


def _parameters(first: Plan, second: Plan, costs: Costs) -> list[ParameterMove]:
    """Each device gets what it lacks from those that have it, replicas in turns."""
    copies = 1 + costs.optimizer_copies
    found = []
    held = list(zip(first.stages, layer_spans(first, costs), strict=True))
    for turn, (target, wanted) in enumerate(
        (device, layers)
        for stage, layers in zip(second.stages, layer_spans(second, costs), strict=True)
        for device in stage.devices
    ):
        own = next((layers for stage, layers in held if target in stage.devices), (0, 0))
        tables = _tables(costs, own)
        for stage, layers in held:
            part = (max(layers[0], wanted[0]), min(layers[1], wanted[1]))
            if target in stage.devices or length(part) <= 0:
                continue
            new = {name: nbytes for name, nbytes in _tables(costs, part).items() if name not in tables}
            tables |= new
            nbytes = copies * (sum(layer.trained for layer in costs.layers[slice(*part)]) + sum(new.values()))
            if nbytes:
                source = stage.devices[turn % stage.size]
                found.append(ParameterMove(source, target, part, tuple(new), nbytes))
    return found


def _tables(costs: Costs, layers: Span) -> dict[str, int]:
    run = costs.layers[slice(*layers)]
    return {name: layer.tables[name] for layer in run for name in sorted(layer.trains_tables)}
