"""T5's relative position bias. Source: T5 (arXiv 1910.10683), section 2.1: buckets that widen with distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgempi.plan.spec import Relative


def relative_bias(relative: Relative, table: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The bias on the scores, (1, heads, S, T), of positions (S) and (T) by a table (buckets, heads)."""
    distance = keys[None, :] - queries[:, None]
    return table[_bucket(relative, distance)].permute(2, 0, 1)[None]


def _bucket(relative: Relative, distance: Tensor) -> Tensor:
    buckets = relative.buckets
    side = torch.zeros_like(distance)
    if relative.bidirectional:
        buckets //= 2
        side = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    # The float operations of the published code, in its order: a bucket's edge must not move by a rounding.
    ratio = torch.log(distance.float() / exact) / math.log(relative.max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return side + torch.where(distance < exact, distance, far)
