"""The tiles of rows that travel in a ring, and the order in which a device meets them.

Device d owns `counts[d]` tokens, cut into `subtiles` tiles of nearly equal size. A ring all-gather brings it the tiles
of devices d-1, d-2 .. d+1 (mod N) in that order; a ring reduce-scatter takes its addends in the same order, its own
last.
Source: Galaxy (arXiv 2405.17245), tile-based overlap; index rules as in `comm/rings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgempi.plan.apportion import Span, apportion, spans


class Tile(NamedTuple):
    """A range of tokens, and the place in the group of the device that owns it."""

    owner: int
    span: Span

    @property
    def tokens(self) -> int:
        """How many."""
        return self.span[1] - self.span[0]


def cut(counts: Sequence[int], subtiles: int) -> tuple[tuple[Tile, ...], ...]:
    """The tiles of each device, without the empty ones.

    Args:
        counts: tokens of each device.
        subtiles: into how many tiles a device's tokens are cut at most.
    """
    tiles = []
    for owner, (start, stop) in enumerate(spans(counts)):
        parts = spans(apportion(stop - start, [1.0] * subtiles))
        tiles.append(tuple(Tile(owner, (start + a, start + b)) for a, b in parts if a < b))
    return tuple(tiles)


def arrivals(tiles: Sequence[Sequence[Tile]], place: int) -> list[Tile]:
    """The other devices' tiles in the order in which a ring brings them to the device at `place`."""
    size = len(tiles)
    return [tile for step in range(1, size) for tile in tiles[(place - step) % size]]
