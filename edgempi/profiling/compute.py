"""Measure what one device takes for the blocks of a model, at several shares and rows, within a time.

Shares and rows go round in turns, so that a weight is read cold, as a run that has many layers reads it, and so that a
moment of trouble on the host falls on all of them. Every device measures for the same time: as many rounds as fit,
one at least. The first of several rounds is left out: it makes kernels and touches fresh memory.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from edgempi.cluster.profile import DeviceTimes, ElementTime
from edgempi.comm.wire import wire_named
from edgempi.config.schema import WireDtype
from edgempi.models.allocator import returning
from edgempi.models.parts import Parts
from edgempi.models.stream import Stream
from edgempi.ops.linear import Route, pick_route
from edgempi.plan.spec import ModelSpec
from edgempi.profiling.fit import Elements, Product, Residuals, fit_elements, fit_linear
from edgempi.profiling.layer import LayerShare, TimedRoute, layer_elements
from edgempi.profiling.stopwatch import Stopwatch

SHARES = (0.25, 0.5, 0.75, 1.0)
ROWS = (0.125, 0.25, 0.5, 1.0)
"""Of heads and columns, and of the length."""
COLD_BYTES = 96 * 2**20
"""Weights that go round are at least so many, where the model has as many: more than a processor's cache."""
WIRE_REPEATS = 8
MOST_ROUNDS = 200


@dataclass(frozen=True)
class BlockTime:
    """A whole block of one layer, measured, and as the fits have it.

    Attributes:
        block: attention, mlp (by the share of heads and columns, at all rows) or connective (by the share of tokens).
    """

    block: str
    share: float
    measured_s: float
    fitted_s: float


@dataclass(frozen=True)
class Compute:
    """What a device takes.

    Attributes:
        times: the fits; what moving bytes takes is measured with the links.
        residuals: of each fit.
        blocks: the check: whole blocks beside the sum of their fits.
        slowdown: wall seconds per processor second (1 where only the wall clock was used).
        rounds: how many measurements stand behind each median.
    """

    times: DeviceTimes
    residuals: dict[str, Residuals]
    blocks: list[BlockTime]
    route: str
    slowdown: float
    rounds: int


class Series:
    """Repeated measurements by what was measured; the first of several is left out."""

    def __init__(self) -> None:
        self._taken: defaultdict[tuple[float, ...], list[float]] = defaultdict(list)

    def add(self, key: tuple[float, ...], seconds: float) -> None:
        """One more."""
        self._taken[key].append(seconds)

    def medians(self, slowdown: float) -> dict[tuple[float, ...], float]:
        """In wall seconds."""
        return {key: median(taken[1:] or taken) * slowdown for key, taken in self._taken.items()}


def shares_that_fit(spec: ModelSpec, itemsize: int, room_bytes: float) -> tuple[float, ...]:
    """The shares whose weights a device can hold side by side; the smallest always counts as one."""
    stack = spec.stacks[spec.last]
    fit = list(SHARES)
    while len(fit) > 1 and layer_elements(stack, sum(fit)) * itemsize > room_bytes:
        fit.pop()
    return tuple(fit)


def measure_compute(
    spec: ModelSpec, dtype: torch.dtype, length: int, seconds: float, room_bytes: float, told: Callable[[float], None]
) -> Compute:
    """Measure for about `seconds`; nothing is read from a checkpoint.

    Args:
        spec: the model; its last stack is measured.
        dtype: of weights and activations.
        length: tokens of a pass.
        seconds: how long, beyond a round that takes longer.
        room_bytes: what the measured weights may take.
        told: called after each round with the part of the time that is over.
    """
    watch = Stopwatch(torch.get_num_threads())
    with torch.inference_mode():
        bench = _Bench(spec, dtype, length, room_bytes, watch)
        rounds, start = 0, time.perf_counter()
        spent = 0.0
        while rounds < MOST_ROUNDS and (rounds == 0 or spent * (1 + 0.5 / rounds) < seconds):
            bench.round()
            rounds += 1
            spent = time.perf_counter() - start
            told(min(1.0, spent / seconds))
        return bench.result(rounds)


class _Bench:
    """The layers at all shares, and what they took."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, length: int, room_bytes: float, watch: Stopwatch) -> None:
        stack = spec.stacks[spec.last]
        self._watch, self._length, self._width, self._dtype = watch, length, stack.width, dtype
        self._gated = stack.gated
        route: Route = pick_route(dtype)
        self._timed = TimedRoute(route, watch)
        self.route = route.name
        shares = shares_that_fit(spec, dtype.itemsize, room_bytes)
        one_of_each = layer_elements(stack, sum(shares)) * dtype.itemsize
        copies = math.ceil(min(COLD_BYTES, room_bytes) / one_of_each)
        with returning():
            self._layers = {
                share: [
                    LayerShare(spec, share, length, self._timed.route, dtype)
                    for _ in range(max(1, min(copies, stack.layers)))
                ]
                for share in shares
            }
        self._rows = sorted({max(1, round(part * length)) for part in ROWS})
        self._streams: dict[tuple[float, int], Stream] = {}
        self._turn = 0
        self._products, self._connective = Series(), Series()
        self._cores, self._causal = Series(), Series()
        self._blocks = {"attention": Series(), "mlp": Series()}
        self._wires = {wire.value: Series() for wire in WireDtype}

    def round(self) -> None:
        """Every share at every number of rows once, and every form of travelling."""
        for rows in self._rows:
            x = torch.randn(1, rows, self._width).to(self._dtype)
            for share, layers in self._layers.items():
                self._turn += 1
                self._layer(layers[self._turn % len(layers)], share, rows, x)
            for name, series in self._wires.items():
                series.add((float(x.numel()),), self._codec(name, x))

    def _layer(self, layer: LayerShare, share: float, rows: int, x: Tensor) -> None:
        stream = self._streams.setdefault((share, rows), layer.stream(rows))
        work, causal = layer.attended(stream)  # builds the mask, which a run does once for all layers
        self._timed.taken()
        y, attention_s = self._watch.time(lambda: layer.attention(Parts.of(x), stream, None).whole())
        products = self._timed.taken()
        cores = self._causal if causal else self._cores
        cores.add((work,), attention_s - sum(product.seconds for product in products))
        _, connective_s = self._watch.time(lambda: layer.norm(x + y))
        self._connective.add((float(x.numel()),), connective_s)
        _, mlp_s = self._watch.time(lambda: layer.mlp(Parts.of(x), stream).whole())
        up, down = self._timed.taken()
        # What the block does between its products (a gate's activation) belongs to the first.
        up_s = mlp_s - down.seconds
        for product in (*products, Product(up.rows, up.outputs, up.inputs, up_s), down):
            self._products.add((product.rows, product.outputs, product.inputs), product.seconds)
        if rows == self._length:
            self._blocks["attention"].add((share,), attention_s)
            self._blocks["mlp"].add((share,), mlp_s)

    def _codec(self, name: str, x: Tensor) -> float:
        """Seconds to encode one tile, decode another and add it: the mean of a few."""
        wire, partial = wire_named(name), x.float()
        shape = (1, x.shape[1], x.shape[2])
        arrived = wire.encode(x)

        def once() -> None:
            wire.encode(x)
            _ = partial + wire.decode(arrived, shape)

        def repeat() -> None:
            for _ in range(WIRE_REPEATS):
                once()

        once()  # touches fresh memory
        return self._watch.time(repeat)[1] / WIRE_REPEATS

    def result(self, rounds: int) -> Compute:
        """The fits and how they stand to whole blocks."""
        slowdown = self._watch.slowdown
        linear, linear_off = fit_linear(_products(self._products.medians(slowdown)))
        fits = {"attention": self._cores, "connective": self._connective, **self._wires}
        fitted = {name: fit_elements(_elements(series.medians(slowdown))) for name, series in fits.items()}
        times = DeviceTimes(
            linear=linear,
            attention=fitted["attention"][0],
            connective=fitted["connective"][0],
            wire={name: fitted[name][0] for name in self._wires},
            causal_share=_causal_share(fitted["attention"][0], self._causal.medians(slowdown)),
        )
        off = {name: residuals for name, (_, residuals) in fitted.items()}
        return Compute(times, {"linear": linear_off, **off}, self._check(times, slowdown), self.route, slowdown, rounds)

    def _check(self, times: DeviceTimes, slowdown: float) -> list[BlockTime]:
        found = []
        rows, width = self._length, self._width
        measured = {name: series.medians(slowdown) for name, series in self._blocks.items()}
        for share, (layer, *_) in self._layers.items():
            size = layer.stack.head_dim
            qkv = (layer.heads + 2 * layer.heads // layer.stack.group) * size
            work, causal = layer.attended(self._streams[share, rows])
            core = times.attention.seconds(work * (times.causal_share if causal else 1))
            attention_s = times.linear.seconds(rows, qkv, width) + core
            attention_s += times.linear.seconds(rows, width, layer.heads * size)
            up = times.linear.seconds(rows, layer.columns * (2 if self._gated else 1), width)
            found.append(BlockTime("attention", share, measured["attention"][share,], attention_s))
            mlp_s = up + times.linear.seconds(rows, width, layer.columns)
            found.append(BlockTime("mlp", share, measured["mlp"][share,], mlp_s))
        for (elements,), connective_s in self._connective.medians(slowdown).items():
            share = elements / (rows * width)
            found.append(BlockTime("connective", share, connective_s, times.connective.seconds(elements)))
        return sorted(found, key=lambda block: ("attention", "mlp", "connective").index(block.block))


def _products(medians: dict[tuple[float, ...], float]) -> list[Product]:
    return [Product(int(m), int(n), int(k), seconds) for (m, n, k), seconds in medians.items()]


def _causal_share(attention: ElementTime, medians: dict[tuple[float, ...], float]) -> float:
    """What part of its pairs a causal kernel works out, by what it takes beside tiles of which nothing is hidden."""
    if not medians or not attention.s_per_element:
        return DeviceTimes.causal_share
    worked = ((taken - attention.call_s) / attention.s_per_element / work for (work,), taken in medians.items())
    return min(1.0, max(DeviceTimes.causal_share, median(worked)))


def _elements(medians: dict[tuple[float, ...], float]) -> Sequence[Elements]:
    return [Elements(elements, seconds) for (elements,), seconds in medians.items()]
