"""Linears that autograd looks through: one copy of the weight, the same kernel forward and backward.

torch's stock product would go to another library than the forward's, which some processors run more slowly. A weight
that is not trained costs no gradient, and its input is not kept for the backward pass. Weights stay unpacked, since the
backward pass reads them the other way round.

LoRA: Hu et al., arXiv 2106.09685; Adapters: Houlsby et al., arXiv 1902.00751.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgempi.ops.activation import activate
from edgempi.ops.linear import PLAIN, TOLERANCE, UNPACKED, Kernel, Linear, Poll, Route, nothing, pick_route
from edgempi.plan.apportion import Span


@lru_cache
def plain_route(dtype: torch.dtype) -> Route:
    """The fastest route here that keeps weights as they are."""
    return pick_route(dtype, (UNPACKED,)) if dtype in TOLERANCE else PLAIN


@lru_cache
def packed_route(dtype: torch.dtype) -> Route:
    """The fastest route here for weights that are read forward alone."""
    return pick_route(dtype) if dtype in TOLERANCE else PLAIN


class _Product(torch.autograd.Function):
    """X W^T + b, and its gradients for whatever of the three requires one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel, compute: torch.dtype
    ) -> Tensor:
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.kernel, ctx.compute, ctx.given = kernel, compute, (x.dtype, weight.dtype)
        # As they were given, which takes no memory: what is cast here is cast again.
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return kernel(x.to(compute), weight.to(compute), None if bias is None else bias.to(compute), "none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows = grad.view(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if weight is not None:
            grad_x = ctx.kernel(grad, weight.to(ctx.compute).t(), None, "none").to(ctx.given[0])
        if x is not None:
            read = x.reshape(-1, x.shape[-1]).to(ctx.compute)
            grad_weight = ctx.kernel(rows.t(), read.t(), None, "none").to(ctx.given[1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0, dtype=ctx.given[1])
        return grad_x, grad_weight, grad_bias, None, None


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel, compute: torch.dtype | None = None
) -> Tensor:
    """X W^T + b: x (..., K), weight (N, K) to (..., N) in `compute`, by default the weight's dtype; differentiable once
    in each.
    """
    compute = compute or weight.dtype
    if x.numel() == 0:
        return F.linear(x.to(weight.dtype), weight, bias).to(compute)
    return _Product.apply(x, weight, bias, kernel, compute)


class Tunable(Linear):
    """A linear of a layer that is held whole: nobody adds up parts of its sums."""

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        # Not Linear's own: that one cuts, packs and keeps one weight, which here are leaves of the graph.
        self.outputs, self.inputs, self.dtype = outputs, inputs, dtype
        self.bias = None

    def partial(self, x: Tensor, between: Poll = nothing) -> Tensor:
        """Not to be had."""
        raise AssertionError("layers are whole where they are trained")


class Product(Tunable):
    """One linear layer over the output columns of several weights, which stay tensors of their own.

    Args:
        weights: (N_i, K) each, multiplied one by one, so that no copy of them is kept for the backward pass; frozen
            ones are better given as one.
        biases: (N_i) or None, one for each.
        kernel: reads weights as they are.
        compute: what products are computed in, where it is not the weights' dtype (trained in fp32, run in bf16).
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        kernel: Kernel,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__(sum(len(weight) for weight in weights), weights[0].shape[1], weights[0].dtype)
        self._parts = tuple(zip(weights, biases, strict=True))
        self._multiply, self._compute = kernel, compute or self.dtype

    def __call__(self, x: Tensor, activation: str = "none", between: Poll = nothing) -> Tensor:
        """activation(x W^T + b): x (..., K) to (..., N)."""
        if self._compute.itemsize < x.dtype.itemsize:
            x = x.to(self._compute)  # one copy for all parts, and the one that is kept
        columns = []
        for weight, bias in self._parts:
            columns.append(product(x, weight, bias, self._multiply, self._compute))
            between()
        y = columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)
        return activate(activation, y.to(self.dtype))


@dataclass(frozen=True)
class Factors:
    """LoRA's two factors beside some output columns of a linear: a (k, K), b (N_i, k)."""

    columns: Span
    a: Tensor
    b: Tensor


class LowRank(Tunable):
    """A frozen linear with scale * B A x added to some of its output columns.

    Args:
        base: the frozen one.
        factors: in the order of their columns.
        scale: alpha / rank.
        kernel: reads the factors.
    """

    def __init__(self, base: Linear, factors: Sequence[Factors], scale: float, kernel: Kernel) -> None:
        super().__init__(base.outputs, base.inputs, base.dtype)
        self._base, self._factors, self._scale, self._multiply = base, tuple(factors), scale, kernel

    def __call__(self, x: Tensor, activation: str = "none", between: Poll = nothing) -> Tensor:
        """activation(x W^T + b + added): x (..., K) to (..., N)."""
        y = self._base(x, between=between)
        columns: list[Tensor] = []
        done = 0
        for factors in self._factors:
            start, stop = factors.columns
            low = product(x, factors.a, None, self._multiply)
            added = product(low, factors.b, None, self._multiply) * self._scale
            columns += [y[..., done:start], y[..., start:stop] + added.to(y.dtype)]
            done = stop
        columns = [part for part in (*columns, y[..., done:]) if part.shape[-1]]
        return activate(activation, columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1))


class Bottleneck(Tunable):
    """A frozen linear followed by y + up(gelu(down(y)))."""

    def __init__(self, base: Linear, down: Linear, up: Linear) -> None:
        super().__init__(base.outputs, base.inputs, base.dtype)
        self._base, self._down, self._up = base, down, up

    def __call__(self, x: Tensor, activation: str = "none", between: Poll = nothing) -> Tensor:
        """activation(y + up(gelu(down(y)))): x (..., K) to (..., N)."""
        y = self._base(x, between=between)
        added = self._up(self._down(y, "gelu"))
        return activate(activation, y + added.to(y.dtype))
