"""Devices in a ring that compute and send, as discrete events: when does each of them finish?

Every device runs its program of steps on one clock. A send is posted and costs its device no time; the messages of one
link go one after another, in the order of posting, and a link is busy for a message's bits while its latency adds to
the arrival alone. A message may be relayed: each device that it reaches sends it on. A sum is relayed only once the
device has given its own part. Relaying takes no step of a program: it happens when communication is next polled, at
once where the device waits, and while it computes at the end of the block of columns that it is at.

This is the max-plus recurrence over tiles of Galaxy's overlapped schedule (arXiv 2405.17245), for any tile sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil
from typing import NamedTuple

from edgempi.cluster.profile import Link


class Compute(NamedTuple):
    """Take `seconds` of the device, which polls communication every `poll_s`; zero: all the time."""

    block: str
    seconds: float
    poll_s: float = 0.0


class Send(NamedTuple):
    """Post a message of `nbytes`, which `hops` links carry one after another."""

    block: str
    key: int
    nbytes: int
    hops: int = 1


class Give(NamedTuple):
    """Give the own part of a sum; it goes on to the next device once the previous one's partial sum is here."""

    block: str
    key: int
    nbytes: int


class Await(NamedTuple):
    """Wait until message `key` is here."""

    block: str
    key: int


class Drain(NamedTuple):
    """Wait until the own link has carried all that was posted."""

    block: str


Step = Compute | Send | Give | Await | Drain
Program = list[Step]


@dataclass
class Spent:
    """Where the time of one device went, in seconds by block."""

    compute: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wire: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """How long its outgoing link carried bits."""
    exposed: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """How long it waited."""

    @property
    def kinds(self) -> tuple[dict[str, float], ...]:
        """The three."""
        return (self.compute, self.wire, self.exposed)


class _Message(NamedTuple):
    block: str
    key: int
    nbytes: int
    hops: int


SETTLED = 3
"""How many equal layers are simulated before the rest is taken to go on as the last of them."""

_ARRIVE, _POST, _GIVE, _DRAIN = range(4)
_Event = tuple[float, int, int, int, _Message]
"""(time, order among equals, kind, device, message)."""


class Ring:
    """Devices in a ring, each with its clock.

    Args:
        links: from each device to the next one; empty where a device is alone.
        now: when each device begins, in seconds.
    """

    def __init__(self, links: Sequence[Link], now: Sequence[float]) -> None:
        self.now = list(now)
        self.free = [0.0] * len(self.now)
        """When each device's outgoing link has carried all that was posted."""
        self.spent = [Spent() for _ in self.now]
        self._latency = [link.latency_s for link in links]
        self._s_per_byte = [8 / link.bits_per_s for link in links]
        self._size = len(self.now)

    def run(self, programs: Sequence[Program]) -> None:
        """Run one program per device to its end; every message that a program sends is awaited by another."""
        self._programs = programs
        self._place = [0] * self._size
        self._events: list[_Event] = []
        self._order = 0
        self._here: list[dict[int, float]] = [{} for _ in programs]
        self._awaited: list[Await | None] = [None] * self._size
        self._given: list[set[int]] = [set() for _ in programs]
        self._partial: list[set[int]] = [set() for _ in programs]
        self._starts: list[list[float]] = [[] for _ in programs]
        self._polls: list[list[tuple[float, float]]] = [[] for _ in programs]
        for device in range(self._size):
            self._advance(device)
        while self._events:
            time, _, kind, device, message = heappop(self._events)
            if kind == _ARRIVE:
                self._arrive(device, message, time)
            elif kind == _POST:
                self._carry(device, message, time)
            elif kind == _GIVE:
                self._give(device, message, time)
            else:
                self.wait_until(device, self.free[device], message.block)
                self._advance(device)

    def repeat(self, programs: Sequence[Program], times: int) -> None:
        """Run programs `times` times in a row, the later ones as the last one that was simulated.

        Devices that end one layer apart begin the next one so; after a few, every one takes as long as the one before.
        """
        simulated = min(times, SETTLED if self._size > 1 else 1)
        last, before = 0.0, [[dict(kind) for kind in spent.kinds] for spent in self.spent]
        for index in range(simulated):
            if index == simulated - 1:
                last = max(self.now)
                before = [[dict(kind) for kind in spent.kinds] for spent in self.spent]
            self.run(programs)
        left = times - simulated
        if left:
            shift = left * (max(self.now) - last)
            self.now = [now + shift for now in self.now]
            self.free = [free + shift for free in self.free]
            for spent, earlier in zip(self.spent, before, strict=True):
                for kind, old in zip(spent.kinds, earlier, strict=True):
                    for block in kind:
                        kind[block] += left * (kind[block] - old.get(block, 0.0))

    def wait_until(self, device: int, time: float, block: str) -> None:
        """Let a device do nothing before `time`."""
        if time > self.now[device]:
            self.spent[device].exposed[block] += time - self.now[device]
            self.now[device] = time

    def _advance(self, device: int) -> None:
        """Run a device's program up to the next thing that it must wait for."""
        program, now = self._programs[device], self.now[device]
        compute, here = self.spent[device].compute, self._here[device]
        for place in range(self._place[device], len(program)):
            step = program[place]
            if type(step) is Compute:
                if step.poll_s:
                    self._starts[device].append(now)
                    self._polls[device].append((now + step.seconds, step.poll_s))
                now += step.seconds
                compute[step.block] += step.seconds
            elif type(step) is Await:
                self.now[device] = now
                if step.key not in here:
                    self._awaited[device], self._place[device] = step, place + 1
                    return
                self.wait_until(device, here[step.key], step.block)
                now = self.now[device]
            elif type(step) is Send:
                self._push(now, _POST, device, _Message(step.block, step.key, step.nbytes, step.hops))
            elif type(step) is Give:
                self._push(now, _GIVE, device, _Message(step.block, step.key, step.nbytes, 1))
            else:
                self.now[device], self._place[device] = now, place + 1
                self._push(now, _DRAIN, device, _Message(step.block, 0, 0, 0))
                return
        self.now[device], self._place[device] = now, len(program)

    def _push(self, time: float, kind: int, device: int, message: _Message) -> None:
        self._order += 1
        heappush(self._events, (time, self._order, kind, device, message))

    def _carry(self, device: int, message: _Message, time: float) -> None:
        seconds = message.nbytes * self._s_per_byte[device]
        self.free[device] = max(self.free[device], time) + seconds
        self.spent[device].wire[message.block] += seconds
        self._push(self.free[device] + self._latency[device], _ARRIVE, (device + 1) % self._size, message)

    def _arrive(self, device: int, message: _Message, time: float) -> None:
        self._here[device][message.key] = time
        if message.hops > 1:
            self._relay(device, message._replace(hops=message.hops - 1), time)
        elif message.key in self._given[device]:
            self._relay(device, message, time)
        else:
            self._partial[device].add(message.key)
        awaited = self._awaited[device]
        if awaited is not None and awaited.key == message.key:
            self._awaited[device] = None
            self.wait_until(device, time, awaited.block)
            self._advance(device)

    def _relay(self, device: int, message: _Message, time: float) -> None:
        """Send on what has arrived, at the next poll."""
        begun = bisect_right(self._starts[device], time) - 1
        if begun >= 0:
            start, (stop, poll_s) = self._starts[device][begun], self._polls[device][begun]
            if time < stop:
                polled = min(stop, start + ceil((time - start) / poll_s) * poll_s)
                if polled > time:
                    self._push(polled, _POST, device, message)
                    return
        self._carry(device, message, time)

    def _give(self, device: int, message: _Message, time: float) -> None:
        if message.key in self._partial[device]:
            self._carry(device, message, time)
        else:
            self._given[device].add(message.key)
