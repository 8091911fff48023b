"""Ring collectives under way: tiles are sent and received while the caller computes, and is asked to poll.

    all-gather      the own tiles go to the next device at once; a tile that arrives goes on to the next device, unless
                    it is the next device's own
    reduce-scatter  the addend of the previous device's tiles goes to the next device as it is; every later addend waits
                    for the partial sum of its tile, is added, and goes on; the own tiles stay

Empty tiles send no message. Sums are taken in fp32 and in the order of the blocking ring (`group.py`), so both give the
same bits for the same addends. Source: Galaxy (arXiv 2405.17245), tile-based overlap.

Shapes: B rows, S tokens, D columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from edgempi.comm.post import Arrival, Post
from edgempi.comm.wire import Wire
from edgempi.plan.tiles import Tile, arrivals

GATHER, SCATTER = 11, 12
"""Message tags: a gather that still forwards may meet the first partial sums of the scatter after it."""


class RingGather:
    """An all-gather under way.

    Args:
        post: of the group.
        x_BSD: the own tokens.
        tiles: of all devices (`plan/tiles.py`).
        wire: the form in which tiles travel.
    """

    def __init__(self, post: Post, x_BSD: Tensor, tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire, self._dtype = post, wire, x_BSD.dtype
        self._rows, self._columns = x_BSD.shape[0], x_BSD.shape[2]
        self.order = arrivals(tiles, post.rank)
        self._waiting: deque[tuple[Tile, Arrival]] = deque()
        self._arrived: dict[Tile, Tensor] = {}
        for tile in self.order:
            self._waiting.append((tile, post.receive(wire.buffer(self._shape(tile)), post.before, GATHER)))
        for tile in tiles[post.rank]:
            first = tiles[post.rank][0].span[0]
            post.send(wire.encode(x_BSD[:, tile.span[0] - first : tile.span[1] - first]), post.after, GATHER)

    def poll(self) -> None:
        """Drive communication, and pass on what has arrived."""
        self._post.let_go()
        while self._waiting and self._waiting[0][1].here():
            tile, arrival = self._waiting.popleft()
            self._arrived[tile] = arrival.buffer
            if tile.owner != self._post.after:
                self._post.send(arrival.buffer, self._post.after, GATHER)

    def tile(self, tile: Tile) -> Tensor:
        """Another device's tile (B, S, D); waits until it is here. Each is asked for once."""

        def here() -> bool:
            self.poll()
            return tile in self._arrived

        if not here():
            self._post.wait(here, "all-gather", [self._post.before])
        return self._wire.decode(self._arrived.pop(tile), self._shape(tile)).to(self._dtype)

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


class RingScatter:
    """A reduce-scatter under way.

    Args:
        post: of the group.
        rows: B.
        columns: D.
        tiles: of all devices.
        wire: the form in which partial sums travel.
    """

    def __init__(self, post: Post, rows: int, columns: int, tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire = post, wire
        self._rows, self._columns = rows, columns
        self._own = tiles[post.rank]
        self.order = arrivals(tiles, post.rank)
        """In which order the other devices' addends shall be given; the own come last."""
        self._waiting: deque[tuple[Tile, Arrival]] = deque()
        self._given: dict[Tile, Tensor] = {}
        self._arrived: dict[Tile, Tensor] = {}
        self._sums: dict[Tile, Tensor] = {}
        for tile in [*self.order, *self._own]:
            if tile.owner != post.before:
                self._waiting.append((tile, post.receive(wire.buffer(self._shape(tile)), post.before, SCATTER)))

    def give(self, tile: Tile, addend_BSD: Tensor) -> None:
        """Add this device's part (B, S, D) of a tile's sum. Each tile is given once, in order; does not wait."""
        if tile.owner == self._post.before:
            self._pass_on(tile, addend_BSD)
        else:
            self._given[tile] = addend_BSD
            self._settle(tile)
        self.poll()

    def poll(self) -> None:
        """Drive communication, and add and pass on what has arrived."""
        self._post.let_go()
        while self._waiting and self._waiting[0][1].here():
            tile, arrival = self._waiting.popleft()
            self._arrived[tile] = arrival.buffer
            self._settle(tile)

    def finish(self) -> Tensor:
        """The sum of the own tiles (B, own S, D) in fp32; waits until it is complete."""

        def complete() -> bool:
            self.poll()
            return not self._waiting

        if not complete():
            self._post.wait(complete, "reduce-scatter", [self._post.before])
        if not self._own:
            return torch.empty(self._rows, 0, self._columns)
        return torch.cat([self._sums[tile] for tile in self._own], dim=1)

    def _settle(self, tile: Tile) -> None:
        if tile not in self._given or tile not in self._arrived:
            return
        partial = self._wire.decode(self._arrived.pop(tile), self._shape(tile))
        total = self._given.pop(tile).float() + partial
        if tile.owner == self._post.rank:
            self._sums[tile] = total
        else:
            self._pass_on(tile, total)

    def _pass_on(self, tile: Tile, total_BSD: Tensor) -> None:
        self._post.send(self._wire.encode(total_BSD.float()), self._post.after, SCATTER)

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)
