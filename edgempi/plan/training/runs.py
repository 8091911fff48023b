"""What every run of consecutive layers takes, tabled once: a planner asks for all of them many times."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgempi.plan.training.costs import Costs
from edgempi.plan.training.memory import memory_line

Floats = NDArray[np.float64]


class Runs:
    """All runs (a, b) of a model's layers, 0 <= a < b <= L, in one order.

    Attributes:
        costs: of the layers.
        starts: a of each run.
        stops: b of each run.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.starts, self.stops = np.triu_indices(costs.size + 1, 1)

    def table(self, values: Floats, rest: float) -> Floats:
        """One value per run as a matrix by (a, b); `rest` where there is no run."""
        found = np.full((self.costs.size + 1, self.costs.size + 1), rest)
        found[self.starts, self.stops] = values
        return found

    @cached_property
    def trained(self) -> Floats:
        """Bytes of trained parameters."""
        return np.array([self.costs.trained_bytes(run) for run in self._spans], float)

    @cached_property
    def memory(self) -> tuple[Floats, Floats, Floats]:
        """See `memory.memory_line`."""
        fixed, stored, passing = np.array([memory_line(self.costs, run) for run in self._spans], float).T
        return fixed, stored, passing

    @cached_property
    def seconds(self) -> tuple[tuple[Floats, Floats], ...]:
        """Of each device, forward and backward: seconds whatever the rows, and for each row."""
        found = []
        for times in self.costs.times:
            both = list(zip(times.forward, times.backward, strict=True))
            fixed = np.cumsum([0.0, *(there.fixed_s + back.fixed_s for there, back in both)])
            each = np.cumsum([0.0, *(there.per_unit_s + back.per_unit_s for there, back in both)])
            found.append((fixed[self.stops] - fixed[self.starts], each[self.stops] - each[self.starts]))
        return tuple(found)

    @cached_property
    def handed(self) -> tuple[Floats, Floats]:
        """Bytes of a row that cross the border before each layer and after the last, forward and back: none there."""
        inside = self.costs.layers[:-1]
        forward = np.array([0.0, *(layer.forward for layer in inside), 0.0])
        return forward, np.array([0.0, *(layer.backward for layer in inside), 0.0])

    @property
    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.starts.tolist(), self.stops.tolist(), strict=True))
