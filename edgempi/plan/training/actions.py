"""Schedules: what every device does for one mini-batch, as lists of actions made before anything runs.

A mini-batch of rows is cut into microbatches, a microbatch over the devices of each stage, in whole rows. A device runs
its rows of every microbatch through its stage, forward and later backward; rows that it did not itself bring forward
come from, and go to, whoever has them in the neighbouring stage. Sends are posted and do not wait; receives wait. The
last backward pass of a device goes layers by layers, and gradients that are complete are summed under the rest of it.

One device, and one stage of several (data parallel), are the same construction with fewer actions.

Source: 1F1B of PipeDream (SOSP 2019) with a flush per mini-batch; depths as in Asteroid (MobiCom 2024) and PAC
(arXiv 2408.10746).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from edgempi.plan.apportion import Span, apportion, length, spans
from edgempi.plan.layout import Move, moves
from edgempi.plan.plan import Plan, Stage
from edgempi.plan.training.buckets import Bucket, buckets
from edgempi.plan.training.costs import Costs, layer_spans


class Cargo(StrEnum):
    """What a message carries."""

    activation = "activation"
    gradient = "gradient"


@dataclass(frozen=True)
class Forward:
    """Run `rows` of the mini-batch through `layers`."""

    stage: int
    microbatch: int
    rows: Span
    layers: Span


@dataclass(frozen=True)
class Backward:
    """Take the gradients of `rows` back through `layers`, adding to those of earlier microbatches."""

    stage: int
    microbatch: int
    rows: Span
    layers: Span


@dataclass(frozen=True)
class Send:
    """Post a message to `peer` with `rows` of the mini-batch."""

    cargo: Cargo
    microbatch: int
    peer: int
    rows: Span
    nbytes: int


@dataclass(frozen=True)
class Receive:
    """Wait for a message from `peer`."""

    cargo: Cargo
    microbatch: int
    peer: int
    rows: Span
    nbytes: int


@dataclass(frozen=True)
class Reduce:
    """Begin to sum the gradients of a bucket over the devices that hold its parameters; its own share may be zero."""

    bucket: Bucket


@dataclass(frozen=True)
class Step:
    """Wait for the sums of all buckets, and let the optimizer work."""

    stage: int
    layers: Span


Action = Forward | Backward | Send | Receive | Reduce | Step
Schedule = Mapping[int, tuple[Action, ...]]
"""What each device (world rank) does, in order; devices without layers are left out."""


def microbatch_spans(rows: int, microbatches: int) -> tuple[Span, ...]:
    """The rows of each microbatch of a mini-batch, none of them empty."""
    return spans(apportion(rows, [1.0] * min(microbatches, rows)))


def own_rows(stage: Stage, device: int, microbatch: Span) -> Span:
    """The rows of a microbatch that a device of a stage works on, counted in the mini-batch."""
    start, stop = stage.row_spans(length(microbatch))[stage.position(device)]
    return (microbatch[0] + start, microbatch[0] + stop)


def classic_depths(stages: int) -> tuple[int, ...]:
    """1F1B: as many microbatches under way at a stage as there are stages from it to the end."""
    return tuple(range(stages, 0, -1))


def spaced_depths(stages: int) -> tuple[int, ...]:
    """1F1B where handing on counts as a stage of its own, so that the pipe stays full while messages are under way."""
    return tuple(2 * after - 1 for after in range(stages, 0, -1))


def gpipe_depths(stages: int, microbatches: int) -> tuple[int, ...]:
    """GPipe: all forward passes before the first backward pass."""
    return (microbatches,) * stages


def schedule(plan: Plan, costs: Costs, rows: int, depths: Sequence[int], bucket_bytes: int = 2**22) -> Schedule:
    """What every device does for a mini-batch.

    Args:
        plan: stages of mode `data` or `single`, and the number of microbatches.
        costs: what the layers are, and the bytes that they hand on.
        rows: of the mini-batch.
        depths: how many microbatches may be under way at each stage that has layers (see `classic_depths`).
        bucket_bytes: gradients are summed in parts of at least so many bytes, where there are as many.

    Returns:
        One list of actions per device. Gradients are of the loss summed over all rows: a device with more rows has
        more part in them, one without rows has zeros.
    """
    working = [stage for stage in plan.stages if stage.units]
    batch = microbatch_spans(rows, plan.microbatches)
    layers = [span for span in layer_spans(plan, costs) if length(span)]
    made = _Maker(layers, working, costs, _crossings(working, batch))
    reduced = buckets(plan, costs, bucket_bytes)
    return {
        device: tuple(made.device(index, device, batch, min(depths[index], len(batch)), reduced[device]))
        for index, stage in enumerate(working)
        for device in stage.devices
    }


@dataclass(frozen=True)
class _Maker:
    layers: Sequence[Span]
    stages: Sequence[Stage]
    costs: Costs
    crossings: Mapping[tuple[int, Span], tuple[Move, ...]]

    def device(
        self, index: int, device: int, batch: Sequence[Span], depth: int, reduced: Sequence[Bucket]
    ) -> Iterator[Action]:
        """The actions of one device."""
        due = [m for m, microbatch in enumerate(batch) if length(own_rows(self.stages[index], device, microbatch))]
        last = due[-1] if due else -1
        for m in range(depth):
            yield from self._forward(index, device, m, batch[m])
        for m, microbatch in enumerate(batch):
            yield from self._backward(index, device, m, microbatch, reduced if m == last else ())
            if m + depth < len(batch):
                yield from self._forward(index, device, m + depth, batch[m + depth])
        if not due:
            yield from map(Reduce, reduced)
        yield Step(index, self.layers[index])

    def _forward(self, index: int, device: int, m: int, microbatch: Span) -> Iterator[Action]:
        rows = own_rows(self.stages[index], device, microbatch)
        if not length(rows):
            return
        nbytes = self.costs.layers[self.layers[index][0] - 1].forward if index else 0
        for peer, part in self._met(index - 1, device, microbatch):
            yield Receive(Cargo.activation, m, peer, part, length(part) * nbytes)
        yield Forward(index, m, rows, self.layers[index])
        nbytes = self.costs.layers[self.layers[index][1] - 1].forward
        for peer, part in self._met(index, device, microbatch, after=True):
            yield Send(Cargo.activation, m, peer, part, length(part) * nbytes)

    def _backward(
        self, index: int, device: int, m: int, microbatch: Span, reduced: Sequence[Bucket]
    ) -> Iterator[Action]:
        rows = own_rows(self.stages[index], device, microbatch)
        if not length(rows):
            return
        start, stop = self.layers[index]
        nbytes = self.costs.layers[stop - 1].backward
        if nbytes:
            for peer, part in self._met(index, device, microbatch, after=True):
                yield Receive(Cargo.gradient, m, peer, part, length(part) * nbytes)
        reached = stop
        for bucket in reduced:
            if length(bucket.layers):
                yield Backward(index, m, rows, (bucket.layers[0], reached))
                reached = bucket.layers[0]
                yield Reduce(bucket)
        if start < reached:
            yield Backward(index, m, rows, (start, reached))
        nbytes = self.costs.layers[start - 1].backward if index else 0
        if nbytes:
            for peer, part in self._met(index - 1, device, microbatch):
                yield Send(Cargo.gradient, m, peer, part, length(part) * nbytes)
        yield from (Reduce(bucket) for bucket in reduced if not length(bucket.layers))

    def _met(self, boundary: int, device: int, microbatch: Span, after: bool = False) -> Iterator[tuple[int, Span]]:
        """Who holds which of a device's rows across the boundary after stage `boundary`, on its side or `after` it."""
        for move in self.crossings.get((boundary, microbatch), ()):
            own, peer = (move.source, move.target) if after else (move.target, move.source)
            if own == device:
                yield peer, move.region.rows


def _crossings(stages: Sequence[Stage], batch: Sequence[Span]) -> dict[tuple[int, Span], tuple[Move, ...]]:
    """By boundary and microbatch, which rows go from whom to whom."""
    return {
        (boundary, (start, stop)): moves(*(stage.layout(stop - start, 1, 1, start) for stage in pair))
        for boundary, pair in enumerate(pairwise(stages))
        for start, stop in batch
    }
