"""Linear layers at the machine's speed: one copy of each weight, in the fastest exact form that this host offers.

`pick_route` times the candidates once at load; `Linear` holds a weight in the picked form, cut into the column blocks
that the plan names, so that communication can be driven between the blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.kernels.linear import onednn, reference
from edgempi.plan.apportion import apportion

Kernel = Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
Poll = Callable[[], None]
"""Drives communication that is under way."""

PROBE_SHAPE = (64, 768, 768)
"""(rows, outputs, inputs) of the probe: large enough to show the GEMM rate, small enough to cost milliseconds."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far a route may be from the reference, as a share of the largest magnitude."""
CLEARLY = 0.9
"""What share of another route's time makes one worth leaving the other. The probe's small weight stays in the cache,
which flatters the forms that are not packed: in a whole model, packed weights gain 5 to 10 % more than it shows."""


def nothing() -> None:
    """No communication is under way."""


@dataclass(frozen=True)
class Route:
    """A way to compute linears: how the weight is kept, and the kernel that reads it so."""

    name: str
    prepare: Callable[[Tensor], Tensor]
    kernel: Kernel


PLAIN = Route("plain", reference.prepare, reference.linear)
UNPACKED = Route("onednn", reference.prepare, onednn.linear)
PACKED = Route("onednn-packed", onednn.prepare, onednn.linear)


def pick_route(dtype: torch.dtype, candidates: Sequence[Route] = (PACKED, UNPACKED)) -> Route:
    """The first of `candidates` that works on this host and agrees with the reference, or a clearly faster later one.

    Args:
        dtype: the dtype of weights and activations.
        candidates: in order of preference; the plain route, which always works, stands after them.
    """
    generator = torch.Generator().manual_seed(0)
    rows, outputs, inputs = PROBE_SHAPE
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    working = [route for route in candidates if _agrees(route, x, weight)]
    best, best_s = PLAIN, math.inf
    for route, taken_s in _seconds([*working, PLAIN], x, weight).items():
        if taken_s < best_s * CLEARLY:
            best, best_s = route, taken_s
    return best


def _agrees(route: Route, x: Tensor, weight: Tensor) -> bool:
    expected = reference.linear(x, weight, None)
    try:
        error = (route.kernel(x, route.prepare(weight), None, "none") - expected).abs().max()
    except (AttributeError, RuntimeError, TypeError):  # the op is not in this build of torch, or not for this dtype
        return False
    return bool(error <= TOLERANCE[x.dtype] * expected.abs().max())


def _seconds(routes: Sequence[Route], x: Tensor, weight: Tensor, rounds: int = 9) -> dict[Route, float]:
    """The least that each took, in turns: what else runs on the machine can only add to it."""
    prepared = {route: route.prepare(weight) for route in routes}
    least_s = dict.fromkeys(routes, math.inf)
    for _ in range(rounds):
        for route in routes:
            start = time.perf_counter()
            route.kernel(x, prepared[route], None, "none")
            least_s[route] = min(least_s[route], time.perf_counter() - start)
    return least_s


class Linear:
    """A weight in the form its route prefers, with its bias.

    Args:
        weight: (N, K); given away: the caller keeps no reference, so that packing leaves one copy.
        bias: (N) or None.
        route: how to keep and multiply it.
        column_blocks: into how many blocks of output columns it is cut.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, route: Route, column_blocks: int = 1) -> None:
        self.outputs, self.inputs = weight.shape
        self.bias = bias
        self.dtype = weight.dtype
        self._kernel = route.kernel
        self._empty = weight.numel() == 0
        blocks = [weight]
        if column_blocks > 1 and self.outputs >= column_blocks:
            blocks = list(weight.split(apportion(self.outputs, [1.0] * column_blocks)))
        if self._empty:
            self._blocks = []
        else:
            self._blocks = [(route.prepare(block), len(block)) for block in blocks]

    def __call__(self, x: Tensor, activation: str = "none", between: Poll = nothing) -> Tensor:
        """activation(x W^T + b): x (..., K) to (..., N); `between` is called after each block of columns."""
        return self._apply(x, self.bias, activation, between)

    def partial(self, x: Tensor, between: Poll = nothing) -> Tensor:
        """X W^T alone: one device's addend of a sum to which the bias is added once, afterwards."""
        return self._apply(x, None, "none", between)

    def _apply(self, x: Tensor, bias: Tensor | None, activation: str, between: Poll) -> Tensor:
        if self._empty or x.numel() == 0:
            y = x.new_zeros(*x.shape[:-1], self.outputs)
            y = y if bias is None or not self.outputs else y + bias
            return reference.ACTIVATIONS[activation](y)
        if len(self._blocks) == 1:
            return self._kernel(x, self._blocks[0][0], bias, activation)
        biases = [None] * len(self._blocks) if bias is None else bias.split([size for _, size in self._blocks])
        columns = []
        for (block, _), part in zip(self._blocks, biases, strict=True):
            columns.append(self._kernel(x, block, part, activation))
            between()
        return torch.cat(columns, dim=-1)
