"""From what devices have cached to the plan of the cached epochs: which activations and parameters move to whom.

In the first epoch a device caches its stage's layers of the rows that it works on. In the cached epochs it needs the
layers of its stage, all of them where there is one stage, of the rows that it is given then. Which rows those are is
free, since gradients are summed over all: `aligned` gives each device rows of which it has cached a part. For P equal
stages that leaves (P - 1) / P of the cache to be moved (PAC, arXiv 2408.10746), the least there can be.

All of this follows from who has what (`Holding`), however it came there: from an epoch under another plan (`filled`),
or from what devices that are left of a run find in their caches. What nobody has is `lost`, and to be computed again.

Rows are places in a mini-batch, or samples of an epoch. A sample stays with the device that has its cache: later epochs
are shuffled among the samples of one device (`pinned_order`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import or_
from typing import TypeVar

from edgempi.plan.apportion import Span, length
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import microbatch_spans, own_rows
from edgempi.plan.training.costs import Costs, layer_spans
from edgempi.plan.training.transport import transport

Owners = tuple[tuple[Span, tuple[int, ...]], ...]
"""Of each stage: its layers, and the device of every row of the mini-batch."""
Holding = tuple[tuple[int, int], ...]
"""Who has what of a row's cache: devices, rising, each with its layers as bits, of which there is one at least."""
Keeper = tuple[int, ...]
"""The devices that work on a row, one of each stage."""
Kind = TypeVar("Kind", bound=Hashable)


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


def keepers(plan: Plan, costs: Costs, rows: int) -> tuple[Keeper, ...]:
    """The same row by row."""
    return tuple(zip(*(held for _, held in owners(plan, costs, rows)), strict=True))


def reads(plan: Plan, costs: Costs) -> tuple[int, ...]:
    """Of each stage with layers, those that are cached, as bits."""
    return tuple(_bits(layers, costs) for layers in layer_spans(plan, costs) if length(layers))


def filled(plan: Plan, costs: Costs, rows: int) -> tuple[Holding, ...]:
    """Who has what of each row of a mini-batch once a plan has cached it."""
    layers = reads(plan, costs)
    return tuple(
        tuple(sorted((device, bits) for device, bits in zip(keeper, layers, strict=True) if bits))
        for keeper in keepers(plan, costs, rows)
    )


def redistribute(first: Plan, second: Plan, costs: Costs, rows: int) -> Redistribution:
    """What moves between two plans of whole rows for one model.

    Args:
        first: under which the cache was filled and the parameters were trained.
        second: under which they are used.
        costs: bytes of the layers' cache and parameters.
        rows: of a mini-batch, equal under both. An epoch's last one may have fewer: ask for it apart.
    """
    held, places, layers = filled(first, costs, rows), keepers(second, costs, rows), reads(second, costs)
    order = aligned(held, places, layers, costs)
    homes = dict(zip(order, places, strict=True))
    moves = cache_moves(held, [homes[row] for row in range(rows)], layers, costs)
    return Redistribution(order, moves, parameter_moves(first, second, costs))


def aligned(held: Sequence[Holding], places: Sequence[Keeper], layers: Sequence[int], costs: Costs) -> tuple[int, ...]:
    """For each place one of the rows, so that as many bytes as can be stay where they are.

    Rows that the same devices have alike are one kind, places of the same devices another, so that this takes hardly
    longer for many rows than for few. Alike rows and places are taken in order.

    Args:
        held: who has what, of each row.
        places: as many.
        layers: what is read at each stage (`reads`).
        costs: bytes of the layers' cache.
    """
    rows, kinds, weigh = _alike(held), _alike(places), _Weight(costs)
    gain = [
        [sum(weigh(dict(holding).get(d, 0) & wanted) for d, wanted in zip(keeper, layers, strict=True))
         for keeper in kinds]
        for holding in rows
    ]  # fmt: skip
    given = transport([len(found) for found in rows.values()], [len(found) for found in kinds.values()], gain)
    left = [iter(found) for found in rows.values()]
    taken: list[list[int]] = [[] for _ in kinds]
    for waiting, counts in zip(left, given, strict=True):
        for chosen, count in zip(taken, counts, strict=True):
            chosen.extend(islice(waiting, count))
    order = [0] * len(places)
    for free, chosen in zip(kinds.values(), taken, strict=True):
        for place, row in zip(free, sorted(chosen), strict=True):
            order[place] = row
    return tuple(order)


def lost(held: Sequence[Holding], layers: Sequence[int]) -> tuple[int, ...]:
    """The rows of which nobody has all that is read."""
    wanted = reduce(or_, layers, 0)
    return tuple(row for row, found in enumerate(held) if wanted & ~reduce(or_, (bits for _, bits in found), 0))


def cache_moves(
    held: Sequence[Holding], homes: Sequence[Keeper], layers: Sequence[int], costs: Costs
) -> tuple[CacheMove, ...]:
    """What goes to the devices that shall have it, each layer of a row from one that has it; what is lost does not.

    Where several have it, the one that has most of it sends it; of equals, the one that has sent least so far.

    Args:
        held: who has what, of each row.
        homes: who shall work on it.
        layers: what is read at each stage (`reads`).
        costs: bytes of the layers' cache.
    """
    weigh = _Weight(costs)
    sent: dict[int, int] = defaultdict(int)
    found: dict[tuple[int, int, Span], list[int]] = defaultdict(list)
    for row, (holding, keeper) in enumerate(zip(held, homes, strict=True)):
        for target, wanted in zip(keeper, layers, strict=True):
            lacking = wanted & ~dict(holding).get(target, 0)
            while offers := [(weigh(lacking & bits), -sent[d], -d, lacking & bits) for d, bits in holding]:
                nbytes, _, negated, part = max(offers)
                if not nbytes:
                    break
                sent[-negated] += nbytes
                for span in _runs(part):
                    found[-negated, target, span].append(row)
                lacking &= ~part
    return tuple(
        CacheMove(source, target, span, tuple(rows), len(rows) * costs.cache_bytes(span))
        for (source, target, span), rows in found.items()
    )


def parameter_moves(first: Plan, second: Plan, costs: Costs) -> tuple[ParameterMove, ...]:
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
    return tuple(found)


def pinned_order(
    first: Sequence[int], kept_by: Sequence[Hashable], wanted: Sequence[int], takers: Sequence[Hashable]
) -> tuple[int, ...]:
    """The order of a later epoch: each place gets the next sample, of those that its device keeps, in a wanted order.

    Args:
        first: the samples.
        kept_by: for each of them, the device that keeps its cache; of a pipeline, those of its stages.
        wanted: the same samples shuffled.
        takers: for each place of the later epoch, the device that works on it; each as often as in `kept_by`.
    """
    keeper = dict(zip(first, kept_by, strict=True))
    waiting: dict[Hashable, deque[int]] = defaultdict(deque)
    for sample in wanted:
        waiting[keeper[sample]].append(sample)
    return tuple(waiting[device].popleft() for device in takers)


class _Weight:
    """Bytes of the cache of layers given as bits."""

    def __init__(self, costs: Costs) -> None:
        self._each = [layer.cache for layer in costs.layers]
        self._known: dict[int, int] = {}

    def __call__(self, bits: int) -> int:
        if bits not in self._known:
            self._known[bits] = sum(nbytes for layer, nbytes in enumerate(self._each) if bits >> layer & 1)
        return self._known[bits]


def _alike(values: Iterable[Kind]) -> dict[Kind, list[int]]:
    """The places of equal values."""
    found: dict[Kind, list[int]] = {}
    for place, value in enumerate(values):
        found.setdefault(value, []).append(place)
    return found


def _bits(layers: Span, costs: Costs) -> int:
    return sum(1 << layer for layer in range(*layers) if costs.layers[layer].cache)


def _runs(bits: int) -> list[Span]:
    """The ranges of neighbouring layers."""
    found: list[Span] = []
    for layer in range(bits.bit_length()):
        if bits >> layer & 1:
            start = found.pop()[0] if found and found[-1][1] == layer else layer
            found.append((start, layer + 1))
    return found


def _tables(costs: Costs, layers: Span) -> dict[str, int]:
    run = costs.layers[slice(*layers)]
    return {name: layer.tables[name] for layer in run for name in sorted(layer.trains_tables)}
