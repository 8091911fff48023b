"""The ranks of one stage and their ring collectives, with unequal and empty tiles.

Tiles are the parts of a tensor (B rows, S tokens, D columns) along its tokens; device d owns tile d. Each step a device
sends one tile to the next device and receives one from the one before (Galaxy, arXiv 2405.17245, ring index rules):

    all-gather      step t sends tile (d - t) mod N, receives tile (d - 1 - t) mod N,            t = 0 .. N-2
    reduce-scatter  step t adds its own part to tile (d - 1 - t) mod N and sends the sum on,     t = 0 .. N-2;
                    at the last step the tile is d and stays

A device so sends every tile but the next device's (all-gather), or every tile but its own (reduce-scatter). Empty tiles
send no message. Sums are taken in fp32 whatever the wire carries. This is the blocking form, kept as the reference.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch
from torch import Tensor

from edgempi.comm.traffic import Traffic
from edgempi.comm.transport import Transport, wait_until
from edgempi.plan.apportion import apportion, spans

RING = 7  # message tag


class Group:
    """One stage's ranks.

    Args:
        transport: over just these ranks.
        members: their world ranks, in order.
        traffic: the rank's counters.
        timeout_s: the bound of every wait.
    """

    def __init__(self, transport: Transport, members: Sequence[int], traffic: Traffic, timeout_s: float) -> None:
        self._transport = transport
        self._members = tuple(members)
        self._traffic = traffic
        self._timeout_s = timeout_s

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """How many ranks."""
        return self._transport.size

    def close(self) -> None:
        """Give the communicator back; every rank of the group must call, and use it no more."""
        self._transport.close()

    def all_gather(self, x_BSD: Tensor, counts: Sequence[int], wire: torch.dtype) -> Tensor:
        """Bring all tiles to every device.

        Collective: every rank of the group, same counts. Blocks.

        Args:
            x_BSD: this device's tile, (B, counts[rank], D).
            counts: tokens of each device's tile.
            wire: the dtype in which tiles travel.

        Returns:
            (B, sum(counts), D) in the dtype of `x_BSD`; equal on all devices to the last bit.
        """
        if self.size == 1:
            return x_BSD
        B, _, D = x_BSD.shape
        tiles = [x_BSD.new_empty((B, count, D), dtype=wire) for count in counts]
        tiles[self.rank] = x_BSD.to(wire).contiguous()
        for step in range(self.size - 1):
            sent, received = (self.rank - step) % self.size, (self.rank - 1 - step) % self.size
            self._pass_on(tiles[sent], tiles[received], "all-gather")
        return torch.cat(tiles, dim=1).to(x_BSD.dtype)

    def reduce_scatter(self, x_BSD: Tensor, counts: Sequence[int], wire: torch.dtype) -> Tensor:
        """Sum the devices' tensors, and keep this device's tile of the sum.

        Collective: every rank of the group, same counts. Blocks.

        Args:
            x_BSD: this device's addend, (B, sum(counts), D).
            counts: tokens of each device's tile.
            wire: the dtype in which partial sums travel.

        Returns:
            (B, counts[rank], D) in the dtype of `x_BSD`.
        """
        if self.size == 1:
            return x_BSD
        tiles = [x_BSD[:, start:stop] for start, stop in spans(counts)]
        total = tiles[(self.rank - 1) % self.size].float()
        for step in range(1, self.size):
            own = tiles[(self.rank - 1 - step) % self.size]
            arrived = own.new_empty(own.shape, dtype=wire)
            self._pass_on(total.to(wire).contiguous(), arrived, "reduce-scatter")
            total = own.float() + arrived
        return total.to(x_BSD.dtype)

    def all_reduce(self, x_BSD: Tensor, wire: torch.dtype) -> Tensor:
        """Sum the devices' tensors, on every device: a reduce-scatter and an all-gather over equal tiles.

        Collective: every rank of the group. Blocks. The result is equal on all devices to the last bit.
        """
        counts = apportion(x_BSD.shape[1], [1.0] * self.size)
        return self.all_gather(self.reduce_scatter(x_BSD, counts, wire), counts, wire)

    def _pass_on(self, sent: Tensor, received: Tensor, what: str) -> None:
        before, after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        requests = []
        if received.numel():
            requests.append(self._transport.irecv(received, before, RING))
        if sent.numel():
            requests.append(self._transport.isend(sent, after, RING))
            self._traffic.sent(sent.nbytes)

        def describe(seconds: float) -> str:
            me, giver, taker = (self._members[rank] for rank in (self.rank, before, after))
            peers = f"rank {giver} (to receive) and rank {taker} (to send)"
            where = f"{what} of {self._traffic.unit}"
            return f"rank {me} on {socket.gethostname()} waits for {peers} in {where}, {seconds:.0f} s"

        waited = wait_until(lambda: self._transport.done(requests), self._timeout_s, describe)
        self._traffic.waited(waited)
