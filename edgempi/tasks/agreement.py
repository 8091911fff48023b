"""How far two passes over one batch agree: outputs by name, on the rank that holds them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def agreement(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], padding: Tensor | None) -> dict[str, float]:
    """How far outputs are from a reference's.

    Args:
        ours: outputs by name, (B, S, ...) or (B, ...); empty on ranks that hold none.
        reference: the same names and shapes.
        padding: (B, S), which tokens are real; None: all.

    Returns:
        `relative_error`, the largest of the outputs' ||a - b|| / ||b||, and `same_argmax`, the share of real tokens
        whose largest element stands in the same place in the first output (the predicted token where there is a
        vocabulary head); nothing where there are no outputs.
    """
    if not ours:
        return {}
    errors = []
    same = []
    for name, b in reference.items():
        a = ours[name].reshape(b.shape)
        if padding is not None and b.shape[:2] == padding.shape:
            a, b = a[padding], b[padding]
        errors.append(float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp_min(1e-30)))
        same.append(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    return {"relative_error": max(errors), "same_argmax": same[0]}
