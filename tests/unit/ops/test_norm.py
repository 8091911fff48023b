"""Norms, beside their definitions."""

from __future__ import annotations

import torch

from edgempi.ops.norm import Norm

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
GAIN, SHIFT = torch.linspace(0.5, 2, 8), torch.linspace(-1, 1, 8)


def test_layer_norm() -> None:
    centred = X - X.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(Norm("layer", 8, 0.1, GAIN, SHIFT)(X), expected * GAIN + SHIFT)
    torch.testing.assert_close(Norm("layer", 8, 0.1, None, None)(X), expected)


def test_rms_norm() -> None:
    expected = X / (X.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * GAIN
    torch.testing.assert_close(Norm("rms", 8, 0.1, GAIN, None)(X), expected)


def test_empty_shards_stay_empty() -> None:
    for kind in ("layer", "rms"):
        assert Norm(kind, 8, 0.1, GAIN, None)(X[:, :0]).shape == (2, 0, 8)
