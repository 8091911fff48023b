"""LayerNorm and RMSNorm over the last dimension."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Norm:
    """A normalisation with its gains.

    Args:
        kind: `layer` or `rms`.
        width: size of the last dimension.
        eps: added to the variance.
        weight, bias: (width), or None where the norm has no gains.
    """

    def __init__(self, kind: str, width: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        self._layer = kind == "layer"
        self._shape = (width,)
        self._eps = eps
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x (..., width); an empty shard stays empty."""
        if self._layer:
            return F.layer_norm(x, self._shape, self.weight, self.bias, self._eps)
        return F.rms_norm(x, self._shape, self.weight, self._eps)
