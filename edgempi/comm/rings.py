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

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from edgempi.comm.post import Arrival, Post
from edgempi.comm.wire import Wire
from edgempi.plan.tiles import Tile, arrivals

GATHER, SCATTER = 1_000, 1_001
"""Message tags, to which twice a tile's number is added. A tile that arrives may go on before an own one that is still
to come, and a gather that still forwards may meet the first partial sums of the scatter after it."""


class RingGather:
    """An all-gather under way.

    Args:
        post: of the group.
        shape: B and D of what is gathered.
        dtype: that tiles are wanted in.
        tiles: of all devices (`plan/tiles.py`).
        wire: the form in which tiles travel.
    """

    def __init__(
        self, post: Post, shape: tuple[int, int], dtype: torch.dtype, tiles: Sequence[Sequence[Tile]], wire: Wire
    ) -> None:
        self._post, self._wire, self._dtype = post, wire, dtype
        self._rows, self._columns = shape
        self._unit = post.traffic.unit  # messages may leave while the next unit runs
        self.order = arrivals(tiles, post.rank)
        """The other devices' tiles as they arrive."""
        self._tags = _numbered(tiles, GATHER)
        self._waiting = {
            tile: post.receive(wire.buffer(self._shape(tile)), post.before, self._tags[tile]) for tile in self.order
        }
        self._arrived: dict[Tile, Tensor] = {}

    def offer(self, tile: Tile, x_BSD: Tensor) -> None:
        """Send one of the own tiles (B, S, D); each is offered once, in order."""
        self._pass_on(tile, self._wire.encode(x_BSD))
        self.poll()

    def poll(self) -> None:
        """Drive communication, and pass on what has arrived."""
        self._post.let_go()
        for tile in _here(self._post, self._waiting):
            buffer = self._waiting.pop(tile).buffer
            self._arrived[tile] = buffer
            if tile.owner != self._post.after:
                self._pass_on(tile, buffer)

    def here(self, tile: Tile) -> bool:
        """Drive communication; whether another device's tile has arrived."""
        self.poll()
        return tile in self._arrived

    def tile(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor:
        """Another device's tile (B, S, D); waits until it is here, and calls `meanwhile` while it does.

        Each is asked for once.
        """

        def here() -> bool:
            meanwhile()
            return self.here(tile)

        if not here():
            self._post.wait(here, "all-gather", [self._post.before])
        return self._wire.decode(self._arrived.pop(tile), self._shape(tile)).to(self._dtype)

    def _pass_on(self, tile: Tile, buffer: Tensor) -> None:
        self._post.send(buffer, self._post.after, self._tags[tile], self._unit)

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


class RingScatter:
    """A reduce-scatter under way.

    Args:
        post: of the group.
        shape: B and D of what is summed.
        tiles: of all devices.
        wire: the form in which partial sums travel.
    """

    def __init__(self, post: Post, shape: tuple[int, int], tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire = post, wire
        self._rows, self._columns = shape
        self._unit = post.traffic.unit
        self.order = arrivals(tiles, post.rank)
        """In which order the other devices' addends shall be given; the own come last."""
        self._tags = _numbered(tiles, SCATTER)
        self._waiting = {
            tile: post.receive(wire.buffer(self._shape(tile)), post.before, self._tags[tile])
            for tile in [*self.order, *tiles[post.rank]]
            if tile.owner != post.before
        }
        self._given: dict[Tile, Tensor] = {}
        self._arrived: dict[Tile, Tensor] = {}
        self._sums: dict[Tile, Tensor] = {}

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
        for tile in _here(self._post, self._waiting):
            self._arrived[tile] = self._waiting.pop(tile).buffer
            self._settle(tile)

    def here(self, tile: Tile) -> bool:
        """Drive communication; whether the sum of an own tile is complete."""
        self.poll()
        return tile in self._sums

    def sum(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor:
        """The sum of an own tile (B, S, D) in fp32; waits until it is complete, and calls `meanwhile` while it does."""
        self._until(lambda: tile in self._sums, meanwhile)
        return self._sums.pop(tile)

    def finish(self, meanwhile: Callable[[], None]) -> None:
        """Pass on what is still to come for others; to be called when the own sums are taken."""
        self._until(lambda: not self._waiting, meanwhile)

    def _until(self, holds: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        def complete() -> bool:
            self.poll()
            meanwhile()
            return holds()

        if not complete():
            with self._post.traffic.within(self._unit):
                self._post.wait(complete, "reduce-scatter", [self._post.before])

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
        self._post.send(self._wire.encode(total_BSD.float()), self._post.after, self._tags[tile], self._unit)

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


def _numbered(tiles: Sequence[Sequence[Tile]], first: int) -> dict[Tile, int]:
    return {tile: first + 2 * number for number, tile in enumerate(chain.from_iterable(tiles))}


def _here(post: Post, waiting: Mapping[Tile, Arrival]) -> list[Tile]:
    tiles = list(waiting)
    return [tiles[index] for index in post.arrived(list(waiting.values()))]
