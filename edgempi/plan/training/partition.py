"""Which layers and which devices make a stage: the dynamic program of PAC, for unequal devices with limited memory.

Devices are taken in a given order, and a group is a run of that order (PAC, arXiv 2408.10746, after PipeDream, SOSP
2019, and Asteroid, MobiCom 2024). A state is: the last layers, the last n devices, p stages, m devices in the first of
them; so a stage that is put in front knows how many microbatches it holds, and to how many devices it hands them.

What a pipeline takes is a sum, the way through all stages, and a maximum, the slowest place (`objective.pipeline_s`).
The shortest way is found under a cap on every place, and the cap lowered to what could still be better than the best
found, until nothing is left under it: the best pipeline, not an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgempi.cluster.profile import ClusterProfile
from edgempi.plan.training.memory import memory_line
from edgempi.plan.training.network import Group, Network
from edgempi.plan.training.objective import DEPTHS, Part
from edgempi.plan.training.runs import Floats, Runs

State = tuple[int, int, int]
"""(devices from the end of the order, stages, devices of the first stage)."""


@dataclass(frozen=True)
class Found:
    """A pipeline and what it takes by the objective, in seconds."""

    seconds: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Limits:
    """What a pipeline may look like: all of PAC by default, or the systems that it is compared with.

    Attributes:
        stages: exactly so many; None: any number.
        group: devices of a stage at most; None: any number.
        everyone: whether no device may be left out.
    """

    stages: int | None = None
    group: int | None = None
    everyone: bool = False


class Partition:
    """The best pipelines for one order of the devices and one number of microbatches.

    Args:
        runs: times and bytes of the layers.
        cluster: links, and what memory each device lends.
        order: devices by rank.
        rows: of the largest microbatch.
        microbatches: of a mini-batch.
        depths: `classic` or `spaced` (see `actions`).
        limits: what a pipeline may look like.
    """

    def __init__(
        self,
        runs: Runs,
        cluster: ClusterProfile,
        order: Sequence[int],
        rows: int,
        microbatches: int,
        depths: str = "classic",
        limits: Limits | None = None,
    ) -> None:
        self._runs, self._costs, self._cluster, self._order = runs, runs.costs, cluster, tuple(order)
        self._rows, self._microbatches, self._depths = rows, microbatches, DEPTHS[depths]
        self._limits = limits or Limits()
        self._network = Network.of(cluster)
        self._size = runs.costs.size
        self._stage: dict[tuple[int, int, int], tuple[Floats, Floats]] = {}
        self._link: dict[tuple[int, int, int], tuple[Floats, Floats]] = {}

    def best(self, goal: float = inf, extra: Mapping[int, float] | None = None) -> dict[int, Found]:
        """The pipeline that takes least by `objective.pipeline_s`, where that is less than `goal`.

        Args:
            goal: what was found elsewhere, in seconds of a mini-batch.
            extra: by number of stages, what such a pipeline costs beside, in the same measure.

        Returns:
            By number of stages, the pipelines that were met on the way, none where none fits. If any takes less than
            `goal`, the best one is among them; of the others no more is said than what they take.
        """
        beside = extra or {}
        found: dict[int, tuple[float, list[_Cut]]] = {}
        fastest = {stages: way.seconds for stages, way in self._ends(self._table(inf, np.maximum, slowest=True))}
        cap = inf
        while cap > 0:
            table, cap = self._table(cap, np.add), 0.0
            for stages, way in self._ends(table):
                cuts, slowest = self._trace(way, table)
                seconds = way.seconds + slowest
                if stages not in found or seconds < found[stages][0]:
                    found[stages] = (seconds, cuts)
                goal = min(goal, seconds + beside.get(stages, 0.0))
                left = goal - beside.get(stages, 0.0) - way.seconds
                if left > fastest[stages]:
                    cap = max(cap, min(slowest, left))
        return {stages: Found(seconds, self._parts(cuts)) for stages, (seconds, cuts) in found.items()}

    def balanced(self) -> dict[int, Found]:
        """The pipeline whose slowest stage or link is fastest, by its number of stages: PAC's program as published."""
        table = self._table(inf, np.maximum)
        traced = ((stages, way.seconds, self._trace(way, table)[0]) for stages, way in self._ends(table))
        return {stages: Found(seconds, self._parts(cuts)) for stages, seconds, cuts in traced}

    def depth(self, after: int) -> int:
        """Microbatches under way at a stage that begins the last `after` stages."""
        return min(self._depths(after)[0], self._microbatches)

    def _table(self, cap: float, join: Callable[..., Floats], slowest: bool = False) -> dict[State, _Cell]:
        """The best value of every state, by its first layer.

        Args:
            cap: places that take so much or more are left out.
            join: how a stage's value and the rest's become one: sum or maximum.
            slowest: whether a place's value is what all microbatches but one take there, in the place of one's way.
        """
        most, count = self._limits.group or len(self._order), len(self._order)
        table: dict[State, _Cell] = {}
        by_size: dict[tuple[int, int], list[State]] = {}

        def enter(state: State, cell: _Cell) -> None:
            if np.isfinite(cell.value).any():
                table[state] = cell
                by_size.setdefault(state[:2], []).append(state)

        for devices in range(1, count + 1):
            if devices <= most:
                seconds, weight = self._stage_s(count - devices, devices, 1)
                ends = np.where(weight[:, -1] < cap, (weight if slowest else seconds)[:, -1], inf)
                enter((devices, 1, devices), _Cell(ends, np.full(len(ends), self._size), np.zeros(len(ends), int)))
            for stages in range(1, min(devices, (self._limits.stages or count) - 1) + 1):
                following = by_size.get((devices, stages), [])
                for group in range(1, min(count - devices, most) + 1) if following else ():
                    cell = self._ahead(table, following, group, cap, join, slowest)
                    enter((devices + group, stages + 1, group), cell)
        return table

    def _ahead(
        self,
        table: dict[State, _Cell],
        following: list[State],
        group: int,
        cap: float,
        join: Callable[..., Floats],
        slowest: bool,
    ) -> _Cell:
        """Put a stage of `group` devices in front of the best of some states."""
        devices, stages, _ = following[0]
        first = len(self._order) - devices - group
        options = []
        for state in following:
            way, weight = self._link_s(first, group, state[2])
            value = np.where(weight < cap, weight if slowest else way, inf)
            options.append(join(value, table[state].value))
        rest = np.array(options)
        which = rest.argmin(axis=0)
        way, weight = self._stage_s(first, group, stages + 1)
        value = weight if slowest else way
        total = join(value if cap == inf else np.where(weight < cap, value, inf), rest.min(axis=0))
        border = total.argmin(axis=1)
        sizes = np.array([state[2] for state in following])
        return _Cell(total.min(axis=1), border, sizes[which[border]])

    def _ends(self, table: dict[State, _Cell]) -> Iterator[tuple[int, _Way]]:
        """The best value of the whole model, by number of stages."""
        for stages in range(1, len(self._order) + 1):
            if self._limits.stages not in (None, stages):
                continue
            least = len(self._order) if self._limits.everyone else 1
            states = [state for state in table if state[1] == stages and state[0] >= least]
            state = min(states, key=lambda s: table[s].value[0], default=None)
            if state is not None and np.isfinite(table[state].value[0]):
                yield stages, _Way(float(table[state].value[0]), state)

    def _trace(self, way: _Way, table: dict[State, _Cell]) -> tuple[list[_Cut], float]:
        """The stages of a way, and what its slowest place takes for all microbatches but one, and its sum."""
        cuts, slowest, layer = [], 0.0, 0
        devices, stages, group = way.state
        while True:
            cell = table[devices, stages, group]
            border, following = int(cell.border[layer]), int(cell.group[layer])
            first = len(self._order) - devices
            slowest = max(slowest, float(self._stage_s(first, group, stages)[1][layer, border]))
            cuts.append(_Cut((layer, border), self._order[first : first + group]))
            if stages == 1:
                return cuts, slowest
            slowest = max(slowest, float(self._link_s(first, group, following)[1][border]))
            devices, stages, group, layer = devices - group, stages - 1, following, border

    def _parts(self, cuts: Sequence[_Cut]) -> tuple[Part, ...]:
        """Stages with their devices' rows."""
        depths = (self.depth(after) for after in range(len(cuts), 0, -1))
        return tuple(Part(*cut, self._share(*cut, depth)) for cut, depth in zip(cuts, depths, strict=True))

    def _share(self, layers: tuple[int, int], group: Group, depth: int) -> tuple[int, ...]:
        """Rows of a microbatch for each device of a stage, the slowest as fast as it can be."""
        costs = [self._costs.both(device, layers) for device in group]
        most = [self.room(device, layers, depth) for device in group]
        counts = [0] * len(group)
        for _ in range(self._rows):  # the next row to whoever is done with it first
            free = (place for place, count in enumerate(counts) if count < most[place])
            counts[min(free, key=lambda place: costs[place].seconds(counts[place] + 1))] += 1
        return tuple(counts)

    def room(self, device: int, layers: tuple[int, int], depth: int) -> int:
        """How many rows of a microbatch a device has memory for; below zero where not even the weights fit."""
        budget = self._cluster.devices[device].memory_budget_bytes
        if budget is None:
            return self._rows
        fixed, stored, passing = memory_line(self._costs, layers)
        return min(self._rows, (budget - fixed) // max(1, depth * stored + passing)) if budget >= fixed else -1

    def _rooms(self, device: int, depth: int) -> Floats:
        """`room` for all runs of layers."""
        budget = self._cluster.devices[device].memory_budget_bytes
        if budget is None:
            return np.full(len(self._runs.starts), float(self._rows))
        fixed, stored, passing = self._runs.memory
        rooms = (budget - fixed) // np.maximum(1, depth * stored + passing)
        return np.where(budget >= fixed, np.minimum(self._rows, rooms), -1.0)

    def _stage_s(self, first: int, size: int, after: int) -> tuple[Floats, Floats]:
        """Of a group, for all runs of layers (a, b): seconds of a microbatch, and of all others with the sum."""
        key = (first, size, self.depth(after))
        if key not in self._stage:
            group = self._order[first : first + size]
            values, fits = [], np.ones(len(self._runs.starts), bool)
            for device in group:
                fixed, each = self._runs.seconds[device]
                room = self._rooms(device, self.depth(after))
                fits &= room >= 0
                values += [np.where(rows <= room, fixed + rows * each, inf) for rows in range(1, self._rows + 1)]
            # The least time in which the group does all rows: so many of its (device, rows) are done by then.
            taken = np.partition(np.array(values), self._rows - 1, axis=0)[self._rows - 1]
            fits &= np.isfinite(taken)
            seconds = np.where(fits, taken, 0.0)
            begin_s, s_per_byte = self._network.all_reduce_line(group)
            sums = np.where(self._runs.trained > 0, begin_s + s_per_byte * self._runs.trained, 0.0)
            others = (self._microbatches - 1) * seconds + sums
            self._stage[key] = (
                self._runs.table(np.where(fits, seconds, inf), inf),
                self._runs.table(np.where(fits, others, inf), inf),
            )
        return self._stage[key]

    def _link_s(self, first: int, size: int, following: int) -> tuple[Floats, Floats]:
        """Between two groups, by border: seconds of a microbatch there and back, and of all others one way."""
        key = (first, size, following)
        if key not in self._link:
            middle = first + size
            a, b = self._order[first:middle], self._order[middle : middle + following]
            there, back = (
                np.where(handed > 0, begin_s + s_per_byte * self._rows * handed, 0.0)
                for handed, (begin_s, s_per_byte) in zip(
                    self._runs.handed,
                    (self._network.handover_line(a, b), self._network.handover_line(b, a)),
                    strict=True,
                )
            )
            inside = np.zeros(self._size + 1, bool)
            inside[1:-1] = True
            others = (self._microbatches - 1) * np.maximum(there, back)
            self._link[key] = (np.where(inside, there + back, inf), np.where(inside, others, inf))
        return self._link[key]


@dataclass(frozen=True)
class _Cell:
    """Of a state, by first layer: its value, where its first stage ends, and the devices of the stage after it."""

    value: Floats
    border: NDArray[np.int_]
    group: NDArray[np.int_]


class _Cut(NamedTuple):
    layers: tuple[int, int]
    devices: Group


@dataclass(frozen=True)
class _Way:
    seconds: float
    state: State
