"""Scaled dot-product attention in plain torch.

Shapes: q (B, H, S, D), k and v (B, G, T, D) with H a multiple of G (grouped queries), mask broadcast to (B, H, S, T):
boolean (True: may attend) or added to the scores. Result (B, H, S, D). A row that may attend to nothing gives zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """The op."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return torch.nan_to_num(torch.softmax(scores, dim=-1)) @ v
