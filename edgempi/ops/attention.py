"""Scaled dot-product attention, and the masks it reads.

Shapes: B rows, S queries, T keys, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: `causal` where that alone says it, otherwise a tensor broadcast to (B, H, S, T)."""

    tensor: Tensor | None = None
    causal: bool = False


def build_mask(
    queries: Tensor, keys: Tensor, causal: bool, window: int | None, padding: Tensor | None, bias: Tensor | None
) -> Mask:
    """The mask of one attention.

    Args:
        queries: (S) indices of the query tokens in the whole sequence.
        keys: (T) indices of the key tokens, 0 .. T-1.
        causal: whether a query sees only keys up to its own index.
        window: how many tokens back it sees, itself included; None: all.
        padding: (B, T) boolean, True for real keys; None where nothing is padded.
        bias: added to the scores, (1, H, S, T); None where the model has none.
    """
    whole = len(queries) == len(keys)
    if causal and padding is None and bias is None and whole and (window is None or window >= len(keys)):
        return Mask(causal=len(queries) > 1)
    allowed = None
    if causal and len(queries):
        allowed = keys[None, :] <= queries[:, None]
        if window is not None:
            allowed &= keys[None, :] > queries[:, None] - window
        allowed = None if bool(allowed.all()) else allowed[None, None]
    if padding is not None:
        visible = padding[:, None, None, :]
        allowed = visible if allowed is None else allowed & visible
    if bias is None:
        return Mask(allowed)
    if allowed is None:
        return Mask(bias)
    return Mask(bias.masked_fill(~allowed, torch.finfo(bias.dtype).min))


def attention(q_BHSD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float, mask: Mask) -> Tensor:
    """Attend; the result is (B, S, H * D), ready for the output projection. Empty shares give empty results."""
    B, H, S, D = q_BHSD.shape
    if q_BHSD.numel() == 0:
        return q_BHSD.new_zeros(B, S, H * D)
    G = k_BGTD.shape[1]
    if S == 1 and G < H and (mask.tensor is None or mask.tensor.shape[1] == 1):
        # One query: the heads of a group stand as rows of one product, so that its keys are read once.
        q_BHSD = q_BHSD.reshape(B, G, H // G, D)
    y_BHSD = F.scaled_dot_product_attention(
        q_BHSD, k_BGTD, v_BGTD, mask.tensor, is_causal=mask.causal, scale=scale, enable_gqa=q_BHSD.shape[1] != G
    )
    return y_BHSD.reshape(B, H, S, D).transpose(1, 2).reshape(B, S, H * D)
