"""The linear op by oneDNN, through ops that torch carries for its own compiler.

torch's stock fp32 linear goes to another library, which on some CPUs (AMD above all) is slower than the oneDNN that the
same wheel holds. The weight may be packed into oneDNN's blocked layout (`prepare`) or stay as it is, where it serves as
an embedding table too. These ops are not part of torch's public interface, so `edgempi/ops/linear.py` probes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgempi.kernels.linear.reference import ACTIVATIONS

FUSED = {"none": ("none", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
"""Activations that oneDNN computes on the way out of the GEMM: (op, algorithm)."""


def prepare(weight: Tensor) -> Tensor:
    """Pack the weight (N, K) into the layout that oneDNN prefers; the result replaces it and cannot be sliced."""
    # No hint of the row count: a weight packed for one row is slower at one row than one packed for many.
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """The op; `weight` is packed or plain."""
    fused, algorithm = FUSED.get(activation, ("none", ""))
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, fused, [], algorithm)
    return y if activation in FUSED else ACTIVATIONS[activation](y)
