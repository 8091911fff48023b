"""The names that configurations give to activations, brought to the one name that the kernels know."""

from __future__ import annotations

from torch import Tensor

from edgempi.errors import UserError
from edgempi.kernels.linear.reference import ACTIVATIONS

NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "": "none",
}


def activation_named(name: str) -> str:
    """The kernels' name of a configuration's activation."""
    if name not in NAMES:
        raise UserError(
            "configuration activation", value=name, rule=f"one of {', '.join(n for n in NAMES if n)}",
            remedy="Use a checkpoint with one of these",
        )  # fmt: skip
    return NAMES[name]


def activate(name: str, x: Tensor) -> Tensor:
    """Apply an activation by the kernels' name; where it follows a linear, let the linear do it."""
    return ACTIVATIONS[name](x)
