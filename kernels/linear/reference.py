"""y = activation(x W^T + b), in plain torch.

Shapes: x (..., K), weight (N, K), bias (N) or None, result (..., N).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}
"""The activations that models use, by one name each."""


def prepare(weight: Tensor) -> Tensor:
    """The form in which the weight is kept: as it is."""
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """The op."""
    return ACTIVATIONS[activation](F.linear(x, weight, bias))
