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
Here: TypeAlias = Callable[[int], bool]
"""Whether a tile can be had without waiting for a message."""


def _always(index: int) -> bool:
    return True


class Parts:
    """A tensor (B, S, D) as tiles of its tokens, in order; each is worked out once, when it is first asked for.

    Args:
        takes: one for each tile, at least one; they are called in order.
        rows: B.
        width: D.
        dtype: of the tiles.
        here: whether a tile is there, of which all before it are.
        drive: helps the messages along that are still to come.
    """

    def __init__(
        self,
        takes: Sequence[Take],
        rows: int,
        width: int,
        dtype: torch.dtype,
        here: Here = _always,
        drive: Poll = nothing,
    ) -> None:
        self.rows, self.width, self.dtype = rows, width, dtype
        self._is_here, self._drive = here, drive
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

    def here(self, index: int) -> bool:
        """Whether a tile can be had without waiting for a message."""
        return index < len(self._tiles) or self._is_here(index)

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

        return self._made_of([change_one(index) for index in range(self._count)])

    def map_runs(self, change: Callable[[Tensor, Poll], Tensor]) -> Parts:
        """As `map`, for a change that is dear to start: it gets the tiles that are here at its start in one piece.

        Args:
            change: works out a run of tiles, and calls what it is given from time to time meanwhile.
        """
        changed: list[Tensor] = []

        def change_run(index: int) -> Take:
            def take(poll: Poll) -> Tensor:
                if index == len(changed):
                    run = [self.tile(index, poll)]
                    while (after := index + len(run)) < self._count and self.here(after):
                        run.append(self.tile(after, poll))

                    def drive() -> None:
                        poll()
                        self._drive()

                    whole = run[0] if len(run) == 1 else torch.cat(run, dim=1)
                    changed.extend(change(whole, drive).split([tile.shape[1] for tile in run], dim=1))
                return changed[index]

            return take

        return self._made_of([change_run(index) for index in range(self._count)])

    def plus(self, addend: Parts) -> Parts:
        """The sum, in the tiles of `addend`, which are as this one's where both are more than one."""
        start, alike = 0, len(self) == len(addend)

        def add_one(index: int) -> Take:
            def take(poll: Poll) -> Tensor:
                nonlocal start
                tile = addend.tile(index, poll)
                if alike:
                    return self.tile(index, poll) + tile
                stop = start + tile.shape[1]
                total = self.whole()[:, start:stop] + tile
                start = stop
                return total

            return take

        return addend._made_of([add_one(index) for index in range(len(addend))])

    def _made_of(self, takes: Sequence[Take]) -> Parts:
        """Tiles that are here when this one's are."""
        return Parts(takes, self.rows, self.width, self.dtype, self.here, self._drive)
