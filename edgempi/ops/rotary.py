"""Rotary position embedding in the half-split convention of Llama's published weights.

Source: RoFormer (arXiv 2104.09864); the pairs are (i, i + D/2), not (2i, 2i + 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgempi.plan.spec import Rotary


def rotary_table(rotary: Rotary, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions (B or 1, S): each (B or 1, S, 1, D), ready to meet (B, S, heads, D)."""
    frequencies = torch.tensor(rotary.frequencies, dtype=torch.float32)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    return (angles.cos() * rotary.scale).to(dtype), (angles.sin() * rotary.scale).to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, S, heads, D) by the table's angles."""
    cosine, sine = table
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
