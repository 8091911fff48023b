"""Measure what training takes on one device: forward and backward of a few layers, and the optimizer's step.

Layers of a stack are alike, so its first layer with the embedding, some inner ones, and the last with what follows the
stack are run as a run would have them, on weights without meaning, at a few numbers of rows. A line over rows is fitted
to each (PAC, arXiv 2408.10746, profiles every layer at several batch sizes; `plan.training.measured` puts the whole
model together again). Inner layers are as many as it takes for weights to be read cold, where memory lends itself.

Times are those of `profiling.stopwatch`: processor time, multiplied by how much wall time that takes on this device.

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from edgempi.cluster.training_times import LayerTime, RowTime, TrainingTimes
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.optim import Updater
from edgempi.finetune.question import Question, counts_of, entering, random_rows, runs
from edgempi.finetune.trunk import SIDE
from edgempi.models.allocator import give_back
from edgempi.plan.spec import stack_of
from edgempi.plan.training.sizes import pieces
from edgempi.profiling.compute import Series
from edgempi.profiling.fit import Elements, Residuals, fit_elements
from edgempi.profiling.stopwatch import Stopwatch

LEAST_ROUNDS, MOST_ROUNDS = 3, 50

State = dict[str, Tensor]
Reader = Callable[[str], Tensor]
FORWARD, BACKWARD = 0.0, 1.0


class Tensors(Protocol):
    """What a run trains."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


class Run(Protocol):
    """Some layers with what is trained beside them, as `finetune.trunk.Trunk` has them; the last give an object with
    the loss as `total`, the others the state for the next layer.
    """

    @property
    def trained(self) -> Tensors: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def learning_dtype(self) -> torch.dtype: ...

    def forward(self, rows: Rows, given: State, read: Reader | None = None) -> Any: ...


Build = Callable[[tuple[str, ...], bool], Run]
"""Makes a run of units with weights of the model's shapes; the second argument says whether with their backbone."""


class Clock(Protocol):
    """See `Stopwatch`."""

    def time(self, call: Callable[[], Any]) -> tuple[Any, float]: ...

    @property
    def slowdown(self) -> float: ...


@dataclass(frozen=True)
class Measured:
    """What one device takes.

    Attributes:
        times: the fits.
        residuals: how far each is from what was measured, by phase, kind and way: `train enc.inner forward`.
        layers: how many layers stand behind each kind: `train enc.inner`.
        rounds: the fewest repetitions of any.
        slowdown: the largest, of wall seconds per processor second.
    """

    times: TrainingTimes
    residuals: Mapping[str, Residuals]
    layers: Mapping[str, int]
    rounds: int
    slowdown: float


def measure_training(
    build: Build,
    question: Question,
    told: Callable[[float], None] = lambda over: None,
    clock: Callable[[], Clock] = lambda: Stopwatch(torch.get_num_threads()),
) -> Measured:
    """Measure one device.

    Args:
        build: makes the layers.
        question: what is to be measured.
        told: called after each kind of layer with the part that is over.
        clock: makes a clock for one kind of layer.

    Raises:
        UserError: memory does not hold one layer with two rows.
    """
    asked = [(name, kind, span) for name in question.phases for kind, span in runs(question, name).items()]
    layers: dict[str, dict[str, LayerTime]] = {name: {} for name in question.phases}
    residuals: dict[str, Residuals] = {}
    updates: list[Elements] = []
    counted: dict[str, int] = {}
    rounds, slowdown = MOST_ROUNDS, 1.0
    for done, (name, kind, (start, stop)) in enumerate(asked):
        units = tuple(unit for run in pieces(question.spec)[start:stop] for unit in run)
        cached = question.phases[name]
        bench = _Bench(build(units, not cached), units, question, cached, clock())
        rounds = min(rounds, bench.repeat(question.seconds / len(asked)))
        lines: dict[str, RowTime] = {}
        for way, number in (("forward", FORWARD), ("backward", BACKWARD)):
            lines[way], off = bench.line(number, stop - start)
            residuals[f"{name} {kind} {way}"] = off
        layers[name][kind] = LayerTime(**lines)
        updates += bench.updates(stop - start)
        counted[f"{name} {kind}"] = stop - start
        slowdown = max(slowdown, bench.slowdown)
        del bench
        give_back()
        told((done + 1) / len(asked))
    update, residuals["update"] = fit_elements(updates)
    return Measured(TrainingTimes(layers, update), residuals, counted, rounds, slowdown)


class _Bench:
    """One run, and what it took.

    Args:
        run: the layers.
        units: of which they are.
        question: what is measured.
        cached: whether the backbone's activations come from the cache.
        clock: of this run.
    """

    def __init__(self, run: Run, units: Sequence[str], question: Question, cached: bool, clock: Clock) -> None:
        self._run, self._question, self._cached, self._clock = run, question, cached, clock
        self._updater = Updater(run.trained.tensors, question.optimizing)
        self._taken, self._updates = Series(), Series()
        spec, work = question.spec, question.work
        self._rows = {count: random_rows(spec, work, count) for count in counts_of(question)}
        self._given = {
            count: {
                name: torch.randn(shape, dtype=run.learning_dtype if name.startswith(SIDE) else run.dtype)
                for name, shape in entering(question, units[0], count, cached).items()
            }
            for count in self._rows
        }
        self._read = {count: self._reader(count) if cached else None for count in self._rows}

    def repeat(self, seconds: float) -> int:
        """Measure in rounds for about so long; how many they were."""
        start, rounds = time.perf_counter(), 0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() - start < seconds):
            for count in self._rows:
                self._pass(count)
            elements = sum(tensor.numel() for tensor in self._run.trained.tensors.values())
            if elements:
                self._updates.add((float(elements),), self._clock.time(self._update)[1])
            rounds += 1
        return rounds

    @property
    def slowdown(self) -> float:
        """Wall seconds per second of the clock."""
        return self._clock.slowdown

    def line(self, way: float, layers: int) -> tuple[RowTime, Residuals]:
        """The fit of one layer, forward or backward."""
        medians = self._taken.medians(self.slowdown)
        samples = [Elements(count, taken / layers) for (which, count), taken in medians.items() if which == way]
        if not any(sample.seconds for sample in samples):  # nothing is trained in or before it
            return RowTime(0.0, 0.0), Residuals(0.0, 0.0)
        found, off = fit_elements(samples)
        return RowTime(found.call_s, found.s_per_element), off

    def updates(self, layers: int) -> list[Elements]:
        """Of one layer's share of the optimizer's step, by its trained numbers."""
        medians = self._updates.medians(self.slowdown)
        return [Elements(elements / layers, taken / layers) for (elements,), taken in medians.items()]

    def _pass(self, count: int) -> None:
        given = {
            name: tensor.detach().requires_grad_(name.startswith(SIDE) or self._question.tuning.crosses_backbone)
            for name, tensor in self._given[count].items()
        }
        rows, read = self._rows[count], self._read[count]
        left, forward_s = self._clock.time(lambda: self._run.forward(rows, given, read))
        ends = list(left.values()) if isinstance(left, dict) else [left.total]
        ends = [tensor for tensor in ends if tensor.requires_grad]
        gradients = [torch.ones_like(tensor) for tensor in ends]
        backward_s = 0.0
        if ends:
            _, backward_s = self._clock.time(lambda: torch.autograd.backward(ends, gradients))
        self._taken.add((FORWARD, count), forward_s)
        self._taken.add((BACKWARD, count), backward_s)

    def _update(self) -> None:
        self._updater.update(self._question.optimizing.rate, self._updater.squares() ** 0.5)

    def _reader(self, count: int) -> Reader:
        spec, work, dtype = self._question.spec, self._question.work, self._run.dtype
        kept = {
            name: torch.randn(count, work.of(spec, name), stack.width, dtype=dtype)
            for name, stack in spec.stacks.items()
        }
        return lambda unit: kept[spec.last if unit == "head" else stack_of(unit)]
