"""A device's part of the residual stream that becomes known tile by tile, while its last sums still arrive.

What follows a sum (bias, residual add, norm) works on each token by itself, so it is noted here and done as the tiles
come: the first ones are on their way to the other devices before the last ones have arrived.

Shapes: B rows, S own tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from edgempi.ops.linear import Poll, nothing

Take: TypeAlias = Callable[[Poll], Tensor]
"""Waits for a tile (B, s, D), driving in the meantime what it is given."""


class Parts:
    """A tensor (B, S, D) as tiles of its tokens, in order; each is worked out once, when it is first asked for.

    Args:
        takes: one for each tile, at least one; they are called in order.
        rows: B.
        width: D.
        dtype: of the tiles.
    """

    def __init__(self, takes: Sequence[Take], rows: int, width: int, dtype: torch.dtype) -> None:
        self.rows, self.width, self.dtype = rows, width, dtype
        self._takes = list(reversed(takes))  # those not called yet, and so what they hold on to
        self._tiles: list[Tensor] = []
        self._count = len(takes)

    @classmethod
    def of(cls, x_BSD: Tensor) -> Parts:
        """A tensor that is known."""
        return cls([lambda poll: x_BSD], x_BSD.shape[0], x_BSD.shape[2], x_BSD.dtype)

    def __len__(self) -> int:
        """How many tiles."""
        return self._count

    def tile(self, index: int, poll: Poll = nothing) -> Tensor:
        """One tile; waits until it is known, and calls `poll` while it does."""
        while len(self._tiles) <= index:
            self._tiles.append(self._takes.pop()(poll))
        return self._tiles[index]

    def whole(self) -> Tensor:
        """All of it; waits."""
        self.tile(self._count - 1)
        if len(self._tiles) > 1:
            self._tiles, self._count = [torch.cat(self._tiles, dim=1)], 1
        return self._tiles[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        """What `change` makes of each tile; it keeps shape and dtype."""

        def change_one(index: int) -> Take:
            return lambda poll: change(self.tile(index, poll))

        return Parts([change_one(index) for index in range(self._count)], self.rows, self.width, self.dtype)

    def plus(self, addend: Parts) -> Parts:
        """The sum, in the tiles of `addend`."""
        start = 0

        def add_one(index: int) -> Take:
            def take(poll: Poll) -> Tensor:
                nonlocal start
                tile = addend.tile(index, poll)
                stop = start + tile.shape[1]
                total = self.whole()[:, start:stop] + tile
                start = stop
                return total

            return take

        return Parts([add_one(index) for index in range(len(addend))], self.rows, self.width, self.dtype)
