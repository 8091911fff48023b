"""How the side network's residual columns are made of the backbone's: some of them, or mixtures of all.

Shapes: D columns of the backbone, n of the side network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Columns(Protocol):
    """What becomes of a weight when its side of the residual stream is narrowed."""

    def read(self, weight_KD: Tensor) -> Tensor:
        """A weight that reads the stream, (K, n)."""
        ...

    def write(self, weight_DK: Tensor) -> Tensor:
        """A weight or bias that writes to it, (n, K) or (n)."""
        ...

    def gain(self, gain_D: Tensor) -> Tensor:
        """A norm's gain, (n)."""
        ...


@dataclass(frozen=True)
class Kept:
    """The side network has some of the columns.

    Attributes:
        scores: of all columns, (D).
        index: those that are kept, in order, (n).
    """

    scores: Tensor
    index: Tensor

    def read(self, weight_KD: Tensor) -> Tensor:
        return weight_KD[:, self.index]

    def write(self, weight_DK: Tensor) -> Tensor:
        return weight_DK[self.index]

    def gain(self, gain_D: Tensor) -> Tensor:
        return gain_D[self.index]


@dataclass(frozen=True)
class Mixed:
    """Each of its columns is a mixture of all.

    Attributes:
        mixture: (D, n), orthogonal directions that keep the mean square.
    """

    mixture: Tensor

    def read(self, weight_KD: Tensor) -> Tensor:
        wide, narrow = self.mixture.shape
        return weight_KD @ self.mixture * (narrow / wide)

    def write(self, weight_DK: Tensor) -> Tensor:
        return self.mixture.t() @ weight_DK

    def gain(self, gain_D: Tensor) -> Tensor:
        return gain_D.mean().expand(self.mixture.shape[1])
