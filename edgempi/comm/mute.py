"""A transport that moves nothing: every message is complete at once and brings zeros.

What a rank takes over it is its computation alone: the floor that no way of hiding communication can be faster than.
Zeros, since what happens to lie in a buffer may be denormal numbers, on which some processors are slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor


class Mute:
    """One rank's view of ranks that it never hears from.

    Args:
        rank: this one.
        size: how many there would be.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def isend(self, tensor: Tensor, target: int, tag: int) -> None:
        """Gone."""

    def irecv(self, tensor: Tensor, source: int, tag: int) -> None:
        """Arrived, and all zeros."""
        tensor.zero_()

    def iall_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> None:
        """All zeros."""
        whole.zero_()

    def iall_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> None:
        """All zeros."""
        for part in received:
            part.zero_()

    def done(self, requests: Sequence[Any]) -> bool:
        """Always."""
        return True

    def some(self, requests: Sequence[Any]) -> list[int]:
        """All."""
        return list(range(len(requests)))

    def split(self, color: int, place: int) -> NoReturn:
        """Who else would be there is not known; make another of the wanted size."""
        raise RuntimeError("nobody answers on a mute transport")

    def close(self) -> None:
        """Nothing was taken."""

    def probe_size(self, source: int, tag: int) -> None:
        """Nothing comes unasked."""

    def abort(self, status: int) -> NoReturn:
        """There is no job to end."""
        raise RuntimeError("nobody answers on a mute transport")
