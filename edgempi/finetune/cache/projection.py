"""A fixed projection to fewer columns, taken before activations are cached.

Random orthonormal directions keep distances up to a factor that concentrates around one (Johnson and Lindenstrauss,
1984); nothing is learned, so what is cached never goes stale. The same matrix serves all layers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

SMALLEST_PIVOT = 1e-6


def projection(width: int, factor: int, seed: int) -> Tensor:
    """The matrix (D, D / factor) in fp32 that `x_TD @ matrix` projects with, scaled to keep the mean squared norm.

    Signs come from SHAKE-256 and are made orthonormal in double precision, with the pivots' signs fixed: every device
    and version gets the same matrix up to rounding.

    Args:
        width: D, a multiple of `factor`.
        factor: how many times fewer columns are left.
        seed: which of the matrices.
    """
    kept = width // factor
    stream = hashlib.shake_256(f"edgempi projection {seed} {width} {kept}".encode()).digest((width * kept + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[: width * kept]
    directions, pivots = np.linalg.qr(bits.reshape(width, kept) * 2.0 - 1.0)
    diagonal = np.diagonal(pivots)
    if np.abs(diagonal).min() < SMALLEST_PIVOT:
        raise ValueError(f"seed {seed} gives dependent directions for {width} columns by {factor}; take another")
    return torch.from_numpy(directions * np.sign(diagonal) * np.sqrt(factor)).float().contiguous()
