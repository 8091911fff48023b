"""What the collectives of a group stand on: messages to its ranks, and bounded waits that say who waits for whom."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from edgempi.comm.trace import RECEIVE, SEND, Flight
from edgempi.comm.traffic import Traffic
from edgempi.comm.transport import Transport, wait_until


class Arrival:
    """A message on its way into `buffer`."""

    def __init__(self, post: Post, buffer: Tensor, request: Any, flight: Flight | None) -> None:
        self.buffer, self.request, self.flight = buffer, request, flight
        self._post = post

    def here(self) -> bool:
        """Drive communication; whether it has arrived."""
        return bool(self._post.arrived([self]))


class Post:
    """The messages of one rank within its group.

    Args:
        transport: over just the group's ranks.
        members: their world ranks, in order.
        traffic: the rank's counters.
        bound_s: gives the bound of a wait that begins.
    """

    def __init__(
        self, transport: Transport, members: Sequence[int], traffic: Traffic, bound_s: Callable[[], float]
    ) -> None:
        self.transport, self.traffic = transport, traffic
        self._members, self._bound_s = tuple(members), bound_s
        self._under_way: list[tuple[Any, tuple[Tensor, ...], Flight | None]] = []

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self.transport.rank

    @property
    def size(self) -> int:
        """How many ranks."""
        return self.transport.size

    @property
    def idle(self) -> bool:
        """Whether all sends and collectives were seen complete."""
        return not self._under_way

    @property
    def before(self) -> int:
        """The place of the rank that this one receives from in a ring."""
        return (self.rank - 1) % self.size

    @property
    def after(self) -> int:
        """The place of the rank that this one sends to in a ring."""
        return (self.rank + 1) % self.size

    def send(self, buffer: Tensor, target: int, tag: int, unit: str | None = None) -> None:
        """Start to send a contiguous buffer; an empty one is not sent.

        The buffer is kept until it is gone, and whoever else holds it must not change it.

        Args:
            buffer: what.
            target: the place of the rank it is for.
            tag: the message tag.
            unit: what it is counted for; None: the unit that runs.
        """
        if buffer.numel():
            peer = self._members[target]
            with self.traffic.within(unit or self.traffic.unit):
                flight = self.traffic.trace.post(SEND, self.traffic.unit, buffer.nbytes, peer)
                self._under_way.append((self.transport.isend(buffer, target, tag), (buffer,), flight))
                self.traffic.sent(buffer.nbytes, peer)

    def receive(self, buffer: Tensor, source: int, tag: int) -> Arrival:
        """Start to receive into a contiguous buffer."""
        flight = self.traffic.trace.post(RECEIVE, self.traffic.unit, buffer.nbytes, self._members[source])
        return Arrival(self, buffer, self.transport.irecv(buffer, source, tag), flight)

    def all_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> Any:
        """Start MPI's all-gather of unequal parts; returns the request. Collective: every rank of the group.

        Args:
            own: this rank's part, contiguous.
            whole: bytes; receives all parts, one after another.
            nbytes: of each rank's part.
        """
        for rank in range(self.size):
            if rank != self.rank and own.numel():
                self.traffic.sent(own.nbytes, self._members[rank])
        return self._kept(self.transport.iall_gather(own, whole, nbytes), own, whole)

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Any:
        """Start MPI's exchange of a part for every rank against a part of every rank; returns the request.

        Collective: every rank of the group. Empty parts are none; the own ones are empty.
        """
        for rank, part in enumerate(sent):
            if part.numel():
                self.traffic.sent(part.nbytes, self._members[rank])
        return self._kept(self.transport.iall_to_all(sent, received), *sent, *received)

    def _kept(self, request: Any, *buffers: Tensor) -> Any:
        """Hold on to what a collective reads and fills until it is complete, also where nobody awaits it."""
        self._under_way.append((request, buffers, None))
        return request

    def done(self, requests: Sequence[Any]) -> bool:
        """Drive communication; whether all requests are complete."""
        return self.transport.done(requests)

    def arrived(self, arrivals: Sequence[Arrival]) -> list[int]:
        """Drive communication; the indices of those that have arrived since."""
        here = self.transport.some([arrival.request for arrival in arrivals])
        self.traffic.trace.land([arrivals[index].flight for index in here])
        return here

    def let_go(self) -> None:
        """Drive communication, and let go of the buffers of sends and collectives that are complete."""
        while self._under_way and self.transport.done([self._under_way[0][0]]):
            self.traffic.trace.land([self._under_way.pop(0)[2]])

    def drain(self) -> None:
        """Wait until every send and every collective is complete."""

        def gone() -> bool:
            self.let_go()
            return not self._under_way

        self.wait(gone, "the end of its sends", [self.after])

    def wait(self, condition: Callable[[], bool], what: str, peers: Sequence[int]) -> None:
        """Wait, within the bound, until `condition` holds; the time counts as exposed communication.

        Args:
            condition: polled; drives communication as it is evaluated.
            what: is awaited, for the error.
            peers: places of the ranks that it depends on.

        Raises:
            StuckError: the bound has passed; its text names this rank, the peers and the unit.
        """

        def describe(seconds: float) -> str:
            names = " and ".join(f"rank {self._members[peer]}" for peer in dict.fromkeys(peers))
            me = f"rank {self._members[self.rank]} on {socket.gethostname()}"
            return f"{me} waits for {names} in {what} of {self.traffic.unit}, {seconds:.0f} s"

        self.traffic.waited(wait_until(condition, self._bound_s(), describe))
