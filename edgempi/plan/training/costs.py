"""What training costs, as the planner sees it: times of every layer on every device, and the layers' bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgempi.plan.apportion import Span
from edgempi.plan.balance import Cost
from edgempi.plan.plan import Plan
from edgempi.plan.training.sizes import LayerBytes


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one device: for every layer, a fixed part and a part for each row, fitted to what was measured.

    Attributes:
        forward: of all that runs forward: the backbone and what stands beside it; from the cache, the latter alone.
        backward: of all that runs backward.
        update_s: of the optimizer's step, by layer; empty where it was not measured.
    """

    forward: tuple[Cost, ...]
    backward: tuple[Cost, ...]
    update_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Costs:
    """One way of running a model: with its backbone, or from the cache.

    Attributes:
        pieces: units of each layer (see `sizes.pieces`).
        layers: their bytes.
        times: one per device, in rank order.
        optimizer_copies: numbers that the optimizer keeps for each trained one: SGD 0, with momentum 1, AdamW 2.
    """

    pieces: tuple[tuple[str, ...], ...]
    layers: tuple[LayerBytes, ...]
    times: tuple[LayerTimes, ...]
    optimizer_copies: int = 0
    _starts: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._starts.update({run[0]: place for place, run in enumerate(self.pieces)})

    @property
    def size(self) -> int:
        """How many layers."""
        return len(self.layers)

    def span(self, units: Sequence[str]) -> Span:
        """The layers that a stage's units are."""
        if not units:
            return (0, 0)
        start = self._starts[units[0]]
        stop = start
        while stop < self.size and self.pieces[stop][-1] != units[-1]:
            stop += 1
        return (start, stop + 1)

    def units(self, layers: Span) -> tuple[str, ...]:
        """The units that layers are."""
        return tuple(unit for run in self.pieces[slice(*layers)] for unit in run)

    def forward(self, device: int, layers: Span) -> Cost:
        """Of running layers forward on a device, by rows."""
        return _sum(self.times[device].forward[slice(*layers)])

    def backward(self, device: int, layers: Span) -> Cost:
        """Of running layers backward on a device, by rows."""
        return _sum(self.times[device].backward[slice(*layers)])

    def both(self, device: int, layers: Span) -> Cost:
        """Of running layers forward and backward on a device, by rows."""
        return _sum((self.forward(device, layers), self.backward(device, layers)))

    def update_s(self, device: int, layers: Span) -> float:
        """Of the optimizer's step on a device."""
        return sum(self.times[device].update_s[slice(*layers)])

    def trained_bytes(self, layers: Span) -> int:
        """Of the trained parameters of layers, shared ones once."""
        run = self.layers[slice(*layers)]
        tables = {name: n for layer in run for name, n in layer.tables.items() if name in layer.trains_tables}
        return sum(layer.trained for layer in run) + sum(tables.values())

    def frozen_bytes(self, layers: Span) -> int:
        """Of the weights of layers that are not trained, shared ones once."""
        run = self.layers[slice(*layers)]
        tables = {name: n for layer in run for name, n in layer.tables.items() if name not in layer.trains_tables}
        return sum(layer.frozen for layer in run) + sum(tables.values())

    def cache_bytes(self, layers: Span) -> int:
        """Of the cached activations of layers, of one row."""
        return sum(layer.cache for layer in self.layers[slice(*layers)])


def layer_spans(plan: Plan, costs: Costs) -> tuple[Span, ...]:
    """The layers of each stage of a plan."""
    return tuple(costs.span(stage.units) for stage in plan.stages)


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.fixed_s for cost in costs), sum(cost.per_unit_s for cost in costs))
