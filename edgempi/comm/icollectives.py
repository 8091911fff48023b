"""MPI's own nonblocking collectives under way, in chunks: the same as `rings.py` offers, by Iallgatherv and Ialltoallv.

Chunk j holds the j-th tile of every device, so the caller computes on one chunk while the next travels. Partial sums go
straight to the device that owns their tile and are added there in fp32, in the order of the ring: MPI has no sums of
bf16 or of scaled integers, and with an fp32 wire the bits are then those of the blocking ring.

Shapes: B rows, S tokens, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgempi.comm.post import Post
from edgempi.comm.wire import Wire
from edgempi.plan.apportion import spans
from edgempi.plan.tiles import Tile


class CollectiveGather:
    """An all-gather under way; arguments, attributes and methods as `rings.RingGather`."""

    def __init__(
        self, post: Post, shape: tuple[int, int], dtype: torch.dtype, tiles: Sequence[Sequence[Tile]], wire: Wire
    ) -> None:
        self._post, self._wire, self._dtype, self._tiles = post, wire, dtype, tiles
        self._rows, self._columns = shape
        self.order = _by_chunk(tiles, post)
        self._chunks: list[Any] = []
        self._chunk_of = {tile: j for owned in tiles for j, tile in enumerate(owned)}
        self._buffers: dict[Tile, Tensor] = {}
        self._post_chunks_without_own()

    def offer(self, tile: Tile, x_BSD: Tensor) -> None:
        """Send one of the own tiles (B, S, D); each is offered once, in order."""
        self._post_chunk(self._wire.encode(x_BSD))
        self._post_chunks_without_own()
        self.poll()

    def _post_chunks_without_own(self) -> None:
        """Take part in the chunks to which this device has nothing to give, once it has given all it has."""
        while len(self._tiles[self._post.rank]) <= len(self._chunks) < _chunks(self._tiles):
            self._post_chunk(self._wire.buffer((0, 0, self._columns)))

    def _post_chunk(self, mine: Tensor) -> None:
        j, wire = len(self._chunks), self._wire
        parts = [wire.buffer(self._shape(owned[j]) if j < len(owned) else (0, 0, self._columns))
                 for owned in self._tiles]  # fmt: skip
        nbytes = [part.nbytes for part in parts]
        whole = torch.empty(sum(nbytes), dtype=torch.uint8)
        for owned, part, (start, stop) in zip(self._tiles, parts, spans(nbytes), strict=True):
            if j < len(owned):
                self._buffers[owned[j]] = whole[start:stop].view(part.dtype).view(part.shape)
        self._chunks.append(self._post.all_gather(mine, whole, nbytes))

    def poll(self) -> None:
        """Drive communication."""
        self._post.done(self._chunks)

    def here(self, tile: Tile) -> bool:
        """Drive communication; whether another device's tile has arrived."""
        return self._post.done([self._chunks[self._chunk_of[tile]]])

    def tile(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor:
        """Another device's tile (B, S, D); waits until its chunk is here, and calls `meanwhile` while it does."""

        def here() -> bool:
            meanwhile()
            return self.here(tile)

        if not here():
            others = [rank for rank in range(self._post.size) if rank != self._post.rank]
            self._post.wait(here, "all-gather", others)
        return self._wire.decode(self._buffers.pop(tile), self._shape(tile)).to(self._dtype)

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


class CollectiveScatter:
    """A reduce-scatter under way; arguments, attributes and methods as `rings.RingScatter`."""

    def __init__(self, post: Post, shape: tuple[int, int], tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire, self._tiles = post, wire, tiles
        self._rows, self._columns = shape
        self._unit = post.traffic.unit  # its last sums may be awaited while the next unit runs
        self.order = _by_chunk(tiles, post)
        self._given: dict[Tile, Tensor] = {}
        self._arriving: list[list[Tensor]] = []
        self._chunks: list[Any] = []
        self._post_complete_chunks()

    def give(self, tile: Tile, addend_BSD: Tensor) -> None:
        """Add this device's part (B, S, D) of a tile's sum. Each tile is given once, in order; does not wait."""
        mine = tile.owner == self._post.rank
        self._given[tile] = addend_BSD.float() if mine else self._wire.encode(addend_BSD.float())
        self._post_complete_chunks()
        self.poll()

    def poll(self) -> None:
        """Drive communication."""
        self._post.done(self._chunks)

    def here(self, tile: Tile) -> bool:
        """Drive communication; whether all addends of an own tile have arrived."""
        return self._post.done([self._chunks[self._tiles[self._post.rank].index(tile)]])

    def sum(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor:
        """The sum of an own tile (B, S, D) in fp32; waits until it is complete, and calls `meanwhile` while it does."""
        post, j = self._post, self._tiles[self._post.rank].index(tile)
        self._until([self._chunks[j]], meanwhile)
        ring = [(post.rank + step) % post.size for step in range(1, post.size)]
        addends = [self._wire.decode(self._arriving[j][rank], self._shape(tile)) for rank in ring]
        total = addends[0].float()
        for addend in [*addends[1:], self._given.pop(tile)]:
            total = total + addend
        return total

    def finish(self, meanwhile: Callable[[], None]) -> None:
        """Complete the exchanges that bring nothing to this device; to be called when the own sums are taken."""
        self._until(self._chunks, meanwhile)

    def _until(self, requests: Sequence[Any], meanwhile: Callable[[], None]) -> None:
        def complete() -> bool:
            meanwhile()
            return self._post.done(requests)

        if not complete():
            others = [rank for rank in range(self._post.size) if rank != self._post.rank]
            with self._post.traffic.within(self._unit):
                self._post.wait(complete, "reduce-scatter", others)

    def _post_complete_chunks(self) -> None:
        """Start the exchange of every chunk whose addends for the others are all given."""
        post = self._post
        for j in range(len(self._chunks), _chunks(self._tiles)):
            tiles = [owned[j] if j < len(owned) and owner != post.rank else None
                     for owner, owned in enumerate(self._tiles)]  # fmt: skip
            if any(tile is not None and tile not in self._given for tile in tiles):
                return
            nothing = self._wire.buffer((0, 0, self._columns))
            sent = [nothing if tile is None else self._given.pop(tile) for tile in tiles]
            own = self._tiles[post.rank]
            shape = self._shape(own[j]) if j < len(own) else (0, 0, self._columns)
            self._arriving.append(
                [nothing if rank == post.rank else self._wire.buffer(shape) for rank in range(post.size)]
            )
            self._chunks.append(post.all_to_all(sent, self._arriving[j]))

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


def _chunks(tiles: Sequence[Sequence[Tile]]) -> int:
    return max((len(owned) for owned in tiles), default=0)


def _by_chunk(tiles: Sequence[Sequence[Tile]], post: Post) -> list[Tile]:
    """The other devices' tiles, those of one chunk together."""
    others = [tiles[(post.rank - step) % post.size] for step in range(1, post.size)]
    return [owned[j] for j in range(_chunks(tiles)) for owned in others if j < len(owned)]
