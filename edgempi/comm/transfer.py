"""One tensor on its way from one layout to another: the messages that `plan/layout.py` names, and no other.

A transfer is begun as early as its shape is known, which posts the receives: a message that finds its receive posted
flows as soon as both sides drive communication, also while they compute, between two units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgempi.comm.trace import RECEIVE, SEND, Flight
from edgempi.comm.traffic import Traffic
from edgempi.comm.transport import Transport
from edgempi.comm.wire import Wire
from edgempi.plan.layout import Layout, Region, moves

DATA = 2  # message tag

Wait = Callable[[Sequence[Any], str], None]
"""Waits, within a bound, until requests are complete; the text says in what."""


class Pending:
    """Messages under way, with the buffers that they read or fill: kept alive until they are complete.

    Made for the unit that `traffic` names now, whenever they are waited for.
    """

    def __init__(self, transport: Transport, traffic: Traffic, wait: Wait, what: str) -> None:
        self._transport, self._traffic, self._wait, self._what = transport, traffic, wait, what
        self._unit = traffic.unit
        self._requests: list[Any] = []
        self._buffers: list[Tensor] = []
        self._flights: list[Flight | None] = []

    def add(self, request: Any, buffer: Tensor, flight: Flight | None) -> None:
        """One more message."""
        self._requests.append(request)
        self._buffers.append(buffer)
        self._flights.append(flight)

    def poll(self) -> bool:
        """Drive communication; whether all is complete, in which case the buffers are let go."""
        if self._requests and self._transport.done(self._requests):
            self._land()
        return not self._requests

    def wait(self) -> None:
        """Complete the messages and let the buffers go."""
        if self._requests:
            with self._traffic.within(self._unit):
                self._wait(self._requests, self._what)
            self._land()

    def _land(self) -> None:
        self._traffic.trace.land(self._flights)
        self._requests, self._buffers, self._flights = [], [], []


class Mail:
    """What of a rank is under way while it computes, to be driven now and then."""

    def __init__(self) -> None:
        self._under_way: list[Pending] = []

    def add(self, pending: Pending) -> None:
        """More that is under way."""
        self._under_way.append(pending)

    def poll(self) -> None:
        """Drive communication, and forget what is complete."""
        self._under_way = [pending for pending in self._under_way if not pending.poll()]

    def drain(self) -> None:
        """Wait until all is complete."""
        for pending in self._under_way:
            pending.wait()
        self._under_way = []


class Transfer:
    """This rank's part in bringing one tensor from one layout to another. Made by `World.begin_transfer`.

    Args:
        transport: over all ranks.
        traffic: the rank's counters; its unit is what the messages are for.
        wait: the world's.
        source: where the tensor lies.
        target: where it shall lie.
        wire: the form in which it travels.
    """

    def __init__(
        self, transport: Transport, traffic: Traffic, wait: Wait, source: Layout, target: Layout, wire: Wire
    ) -> None:
        self._transport, self._traffic, self._wait = transport, traffic, wait
        self._rank, self._wire, self._unit = transport.rank, wire, traffic.unit
        self._held, self._wanted = source.get(self._rank), target.get(self._rank)
        self._moves = [move for move in moves(source, target) if self._rank in (move.source, move.target)]
        senders = sorted({move.source for move in self._moves if move.target == self._rank != move.source})
        self.receives = self._pending(f"receive of {self._unit} from rank {', '.join(map(str, senders))}")
        self._arriving: list[tuple[Region, Tensor]] = []
        for move in self._moves:
            if move.target == self._rank != move.source:
                buffer = wire.buffer(move.region.shape)
                flight = traffic.trace.post(RECEIVE, self._unit, buffer.nbytes, move.source)
                self.receives.add(transport.irecv(buffer, move.source, DATA), buffer, flight)
                self._arriving.append((move.region, buffer))

    def send(self, tensor: Tensor | None) -> Pending:
        """Start to send what others want of this rank's box under the source layout, `tensor`."""
        receivers = sorted({move.target for move in self._moves if move.source == self._rank})
        with self._traffic.within(self._unit):
            sends = self._pending(f"send of {self._unit} to rank {', '.join(map(str, receivers))}")
            for move in self._moves:
                if move.source == self._rank != move.target:
                    buffer = self._wire.encode(self._part(tensor, move.region))
                    flight = self._traffic.trace.post(SEND, self._unit, buffer.nbytes, move.target)
                    sends.add(self._transport.isend(buffer, move.target, DATA), buffer, flight)
                    self._traffic.sent(buffer.nbytes, move.target)
        return sends

    def receive(self, tensor: Tensor | None = None) -> Tensor | None:
        """Wait for this rank's box under the target layout; None where it holds none.

        Args:
            tensor: this rank's box under the source layout, where it has one: some of that may stay.
        """
        self.receives.wait()
        if self._wanted is None:
            return None
        parts = [(region, self._wire.decode(buffer, region.shape)) for region, buffer in self._arriving]
        for move in self._moves:
            if move.source == move.target == self._rank:  # rounded like what travels, so that replicas agree
                stays = self._wire.encode(self._part(tensor, move.region))
                parts.append((move.region, self._wire.decode(stays, move.region.shape)))
        if not parts:  # an empty box
            return self._wire.decode(self._wire.buffer(self._wanted.shape), self._wanted.shape)
        if parts[0][0] == self._wanted:
            return parts[0][1]
        result = torch.empty(self._wanted.shape, dtype=parts[0][1].dtype)
        for region, part in parts:
            result[region.within(self._wanted)] = part
        return result

    def _part(self, tensor: Tensor | None, region: Region) -> Tensor:
        assert tensor is not None and self._held is not None
        return tensor[region.within(self._held)]

    def _pending(self, what: str) -> Pending:
        return Pending(self._transport, self._traffic, self._wait, what)
