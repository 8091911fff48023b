"""The ranks of one stage and their ring collectives, with unequal and empty tiles.

Tiles are the parts of a tensor (B rows, S tokens, D columns) along its tokens; device d owns tile d. Each step a device
sends one tile to the next device and receives one from the one before (Galaxy, arXiv 2405.17245, ring index rules):

    all-gather      step t sends tile (d - t) mod N, receives tile (d - 1 - t) mod N,            t = 0 .. N-2
    reduce-scatter  step t adds its own part to tile (d - 1 - t) mod N and sends the sum on,     t = 0 .. N-2;
                    at the last step the tile is d and stays

A device so sends every tile but the next device's (all-gather), or every tile but its own (reduce-scatter). Empty tiles
send no message. Sums are taken in fp32 whatever the wire carries. The collectives here block, and are the reference of
those under way that `gather` and `scatter` start (`rings.py`, `icollectives.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgempi.comm.icollectives import CollectiveGather, CollectiveScatter
from edgempi.comm.post import Post
from edgempi.comm.rings import RingGather, RingScatter
from edgempi.comm.trace import Trace
from edgempi.comm.traffic import Traffic
from edgempi.comm.transport import Transport
from edgempi.comm.wire import Wire
from edgempi.plan.apportion import apportion, spans
from edgempi.plan.tiles import Tile

RING = 10  # message tag


class Gather(Protocol):
    """An all-gather under way; see `rings.RingGather`."""

    order: list[Tile]

    def offer(self, tile: Tile, x_BSD: Tensor) -> None: ...

    def poll(self) -> None: ...

    def here(self, tile: Tile) -> bool: ...

    def tile(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor: ...


class Scatter(Protocol):
    """A reduce-scatter under way; see `rings.RingScatter`."""

    order: list[Tile]

    def give(self, tile: Tile, addend_BSD: Tensor) -> None: ...

    def poll(self) -> None: ...

    def here(self, tile: Tile) -> bool: ...

    def sum(self, tile: Tile, meanwhile: Callable[[], None]) -> Tensor: ...

    def finish(self, meanwhile: Callable[[], None]) -> None: ...


class Group:
    """One stage's ranks.

    Args:
        transport: over just these ranks.
        members: their world ranks, in order.
        traffic: the rank's counters.
        bound_s: gives the bound of a wait that begins.
    """

    def __init__(
        self, transport: Transport, members: Sequence[int], traffic: Traffic, bound_s: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._post = Post(transport, members, traffic, bound_s)

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self._post.rank

    @property
    def size(self) -> int:
        """How many ranks."""
        return self._post.size

    @property
    def post(self) -> Post:
        """Messages to the group's ranks, for exchanges that are made elsewhere."""
        return self._post

    @property
    def trace(self) -> Trace:
        """The rank's recorder."""
        return self._post.traffic.trace

    def close(self) -> None:
        """Give the communicator back; every rank of the group must call, and use it no more."""
        self._transport.close()

    def gather(
        self, shape: tuple[int, int], dtype: torch.dtype, tiles: Sequence[Sequence[Tile]], wire: Wire, overlap: str
    ) -> Gather:
        """Start an all-gather of (B, S, D) tensors, `shape` being (B, D): offer the own tiles, take the others'.

        Collective: every rank of the group, same tiles. `overlap` is `ring` or `icollective`.
        """
        kind = RingGather if overlap == "ring" else CollectiveGather
        return kind(self._post, shape, dtype, tiles, wire)

    def scatter(self, shape: tuple[int, int], tiles: Sequence[Sequence[Tile]], wire: Wire, overlap: str) -> Scatter:
        """Start a reduce-scatter of a (B, S, D) tensor, `shape` being (B, D), whose addends are given tile by tile.

        Collective: every rank of the group, same tiles. `overlap` is `ring` or `icollective`.
        """
        kind = RingScatter if overlap == "ring" else CollectiveScatter
        return kind(self._post, shape, tiles, wire)

    def drain(self) -> None:
        """Wait until what this rank has sent is gone."""
        self._post.drain()

    def all_gather(self, x_BSD: Tensor, counts: Sequence[int], wire: Wire) -> Tensor:
        """Bring all tiles to every device.

        Collective: every rank of the group, same counts. Blocks.

        Args:
            x_BSD: this device's tile, (B, counts[rank], D).
            counts: tokens of each device's tile.
            wire: the form in which tiles travel.

        Returns:
            (B, sum(counts), D) in the dtype of `x_BSD`: the own tile as it is, the others as the wire rounds them.
        """
        if self.size == 1:
            return x_BSD
        parts = self._spread(x_BSD, counts, wire)
        parts[self.rank] = x_BSD
        return torch.cat(parts, dim=1)

    def reduce_scatter(self, x_BSD: Tensor, counts: Sequence[int], wire: Wire) -> Tensor:
        """Sum the devices' tensors, and keep this device's tile of the sum.

        Collective: every rank of the group, same counts. Blocks.

        Args:
            x_BSD: this device's addend, (B, sum(counts), D).
            counts: tokens of each device's tile.
            wire: the form in which partial sums travel.

        Returns:
            (B, counts[rank], D) in the dtype of `x_BSD`.
        """
        if self.size == 1:
            return x_BSD
        B, _, D = x_BSD.shape
        tiles = [x_BSD[:, start:stop] for start, stop in spans(counts)]
        total = tiles[(self.rank - 1) % self.size].float()
        for step in range(1, self.size):
            own = tiles[(self.rank - 1 - step) % self.size]
            shape = (B, own.shape[1], D)
            arrived = wire.buffer(shape)
            self._pass_on(wire.encode(total), arrived, "reduce-scatter")
            total = own.float() + wire.decode(arrived, shape)
        self._post.drain()
        return total.to(x_BSD.dtype)

    def all_reduce(self, x_BSD: Tensor, wire: Wire) -> Tensor:
        """Sum the devices' tensors, on every device: a reduce-scatter and an all-gather over equal tiles.

        Collective: every rank of the group. Blocks. The result is equal on all devices to the last bit.
        """
        counts = apportion(x_BSD.shape[1], [1.0] * self.size)
        total = self.reduce_scatter(x_BSD, counts, wire)
        return total if self.size == 1 else torch.cat(self._spread(total, counts, wire), dim=1)

    def _spread(self, x_BSD: Tensor, counts: Sequence[int], wire: Wire) -> list[Tensor]:
        """All tiles as the wire rounds them, the own one too."""
        B, _, D = x_BSD.shape
        shapes = [(B, count, D) for count in counts]
        tiles = [wire.buffer(shape) for shape in shapes]
        tiles[self.rank] = wire.encode(x_BSD)
        for step in range(self.size - 1):
            sent, received = (self.rank - step) % self.size, (self.rank - 1 - step) % self.size
            self._pass_on(tiles[sent], tiles[received], "all-gather")
        self._post.drain()
        return [wire.decode(*pair).to(x_BSD.dtype) for pair in zip(tiles, shapes, strict=True)]

    def _pass_on(self, sent: Tensor, received: Tensor, what: str) -> None:
        post = self._post
        arrival = post.receive(received, post.before, RING) if received.numel() else None
        post.send(sent, post.after, RING)
        if arrival is not None:
            post.wait(arrival.here, what, [post.before])
