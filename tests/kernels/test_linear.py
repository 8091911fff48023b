"""Every implementation of the linear op gives what the reference gives."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from edgempi.kernels.linear import onednn, reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SHAPES = {"one row": (1, 48, 96), "odd": (7, 13, 5), "many rows": (130, 33, 64), "no batch": (64, 64)}


@pytest.mark.parametrize("implementation", [reference, onednn], ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_every_activation(
    implementation: ModuleType, packed: bool, dtype: torch.dtype, shape: str, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    *leading, outputs, inputs = SHAPES[shape]
    x = torch.randn(*leading, inputs, generator=generator).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    kept = implementation.prepare(weight.clone()) if packed else weight
    for activation in reference.ACTIVATIONS:
        expected = _exact(x, weight, bias, activation)
        got = implementation.linear(x, kept, bias, activation)
        assert got.dtype == dtype
        assert got.shape == expected.shape
        assert (got.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max(), activation


def _exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    y = x.double() @ weight.double().T
    return reference.ACTIVATIONS[activation](y if bias is None else y + bias.double())
