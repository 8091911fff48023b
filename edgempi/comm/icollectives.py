"""MPI's own nonblocking collectives under way, in chunks: the same as `rings.py` offers, by Iallgatherv and Ialltoallv.

Chunk j holds the j-th tile of every device, so the caller computes on one chunk while the next travels. Partial sums go
straight to the device that owns their tile and are added there in fp32, in the order of the ring: MPI has no sums of
bf16 or of scaled integers, and with an fp32 wire the bits are then those of the blocking ring.

Shapes: B rows, S tokens, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgempi.comm.post import Post
from edgempi.comm.wire import Wire
from edgempi.plan.apportion import spans
from edgempi.plan.tiles import Tile


class CollectiveGather:
    """An all-gather under way; arguments, attributes and methods as `rings.RingGather`."""

    def __init__(self, post: Post, x_BSD: Tensor, tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire, self._dtype = post, wire, x_BSD.dtype
        self._rows, self._columns = x_BSD.shape[0], x_BSD.shape[2]
        self.order = _by_chunk(tiles, post)
        self._chunks: list[Any] = []
        self._chunk_of = {tile: j for owned in tiles for j, tile in enumerate(owned)}
        self._buffers: dict[Tile, Tensor] = {}
        for j in range(_chunks(tiles)):
            parts = [self._encoded(owned, j) for owned in tiles]
            whole = torch.empty(sum(part.nbytes for part in parts), dtype=torch.uint8)
            cuts = [whole[start:stop] for start, stop in spans([part.nbytes for part in parts])]
            mine = parts[post.rank]
            if j < len(tiles[post.rank]):
                tile = tiles[post.rank][j]
                first = tiles[post.rank][0].span[0]
                mine = wire.encode(x_BSD[:, tile.span[0] - first : tile.span[1] - first])
            for owned, part, place in zip(tiles, parts, cuts, strict=True):
                if j < len(owned):
                    self._buffers[owned[j]] = place.view(part.dtype).view(part.shape)
            self._chunks.append(post.all_gather(mine, whole, [part.nbytes for part in parts]))

    def poll(self) -> None:
        """Drive communication."""
        self._post.done(self._chunks)

    def tile(self, tile: Tile) -> Tensor:
        """Another device's tile (B, S, D); waits until its chunk is here."""
        request = [self._chunks[self._chunk_of[tile]]]
        if not self._post.done(request):
            others = [rank for rank in range(self._post.size) if rank != self._post.rank]
            self._post.wait(lambda: self._post.done(request), "all-gather", others)
        return self._wire.decode(self._buffers.pop(tile), self._shape(tile)).to(self._dtype)

    def _encoded(self, owned: Sequence[Tile], j: int) -> Tensor:
        return self._wire.buffer(self._shape(owned[j]) if j < len(owned) else (0, 0, self._columns))

    def _shape(self, tile: Tile) -> tuple[int, int, int]:
        return (self._rows, tile.tokens, self._columns)


class CollectiveScatter:
    """A reduce-scatter under way; arguments, attributes and methods as `rings.RingScatter`."""

    def __init__(self, post: Post, rows: int, columns: int, tiles: Sequence[Sequence[Tile]], wire: Wire) -> None:
        self._post, self._wire = post, wire
        self._rows, self._columns, self._tiles = rows, columns, tiles
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

    def finish(self) -> Tensor:
        """The sum of the own tiles (B, own S, D) in fp32; waits until it is complete."""
        post = self._post
        if not post.done(self._chunks):
            others = [rank for rank in range(post.size) if rank != post.rank]
            post.wait(lambda: post.done(self._chunks), "reduce-scatter", others)
        own = self._tiles[post.rank]
        if not own:
            return torch.empty(self._rows, 0, self._columns)
        return torch.cat([self._sum(tile, self._arriving[j]) for j, tile in enumerate(own)], dim=1)

    def _sum(self, tile: Tile, parts: Sequence[Tensor]) -> Tensor:
        ring = [(self._post.rank + step) % self._post.size for step in range(1, self._post.size)]
        addends = [self._wire.decode(parts[rank], self._shape(tile)) for rank in ring]
        total = addends[0].float()
        for addend in [*addends[1:], self._given.pop(tile)]:
            total = total + addend
        return total

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
