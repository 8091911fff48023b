"""Every name that a configuration gives to an activation is the function that transformers means by it."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from edgempi.errors import UserError
from edgempi.kernels.linear.reference import ACTIVATIONS
from edgempi.ops.activation import NAMES, activation_named


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_names(name: str) -> None:
    x = torch.linspace(-6, 6, 100)
    torch.testing.assert_close(ACTIVATIONS[activation_named(name)](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)


def test_none() -> None:
    assert activation_named("") == "none"


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="activation: mish; one of relu, gelu, gelu_new"):
        activation_named("mish")
