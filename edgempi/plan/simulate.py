"""Devices in a ring that compute and send, as discrete events: when does each of them finish?

Every device runs its program of steps on one clock. A send is posted and costs its device no time; the messages of one
link go one after another, in the order of posting, and a link is busy for a message's bits while its latency adds to
the arrival alone. A message may be relayed: each device that it reaches sends it on. A sum is relayed only once the
device has given its own part. Relaying takes no step of a program: it happens when communication is next polled, at
once where the device waits, and while it computes at the end of the block of columns that it is at. Programs follow
each other, and a later one may await what was sent in the one before.

This is the max-plus recurrence over tiles of Galaxy's overlapped schedule (arXiv 2405.17245), for any tile sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, pairwise
from math import ceil, inf, isclose
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
    """Wait until message `key` is here; `sent_before(key)` is one of the program before."""

    block: str
    key: int


class Drain(NamedTuple):
    """Wait until the own link has carried all that was posted."""

    block: str


class Take(NamedTuple):
    """Wait for the first message of `keys` that was not taken yet, take with it those after it that are here by then.

    Again, until `least` are taken. What keys are taken is known by the first of them: a later step with the same `keys`
    goes on where this one stopped.

    Attributes:
        block: whose the waiting is.
        keys: in the order in which they come.
        least: how many to take, those that were taken before included.
        work: the steps of taking keys[first:stop]; they await nothing.
    """

    block: str
    keys: Sequence[int]
    least: int
    work: Callable[[int, int], Program]


Step = Compute | Send | Give | Await | Drain | Take
Program = list[Step]


def sent_before(key: int) -> int:
    """What a program calls the message that was `key` to the program before it."""
    return ~key


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


SIMULATED = 8
"""How many equal layers are simulated at most, where they do not settle before."""
SETTLED = 1e-3
"""By what part the time of layers may differ that are taken to go on alike."""

_ARRIVE, _POST, _GIVE, _DRAIN, _TAKE = range(5)
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
        self._here: list[dict[int, float]] = [{} for _ in self.now]

    def run(self, programs: Sequence[Program]) -> None:
        """Run one program per device to its end; every message that is sent is awaited by it or by the next one."""
        self._todo: list[list[Iterator[Step]]] = [[iter(program)] for program in programs]
        self._events: list[_Event] = []
        self._order = 0
        self._begun = list(self.now)
        self._here = [{sent_before(key): time for key, time in here.items() if key >= 0} for here in self._here]
        self._awaited: list[Await | None] = [None] * self._size
        self._offered: list[Take | None] = [None] * self._size
        self._taken: list[dict[int, int]] = [{} for _ in programs]
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
            elif kind == _TAKE:
                self._take(device, time)
            else:
                self.wait_until(device, self.free[device], message.block)
                self._advance(device)

    def repeat(self, first: Sequence[Program], again: Sequence[Program], times: int) -> None:
        """Run a layer `times` times in a row; once every device takes as long as before, the rest goes on alike.

        Args:
            first: of the first time.
            again: of every later time, when there may be messages of the time before to be awaited.
            times: at least once.
        """
        clocks, before = [list(self.now)], [self._copied()]
        for index in range(1 if self._size == 1 else min(times, SIMULATED)):
            self.run(again if index else first)
            clocks.append(list(self.now))
            before.append(self._copied())
            if period(clocks):
                break
        left = times - len(clocks) + 1
        if left:
            # Where nothing has settled the last half tells what is to be expected.
            repeated = period(clocks) or len(clocks) // 2
            rounds = left / repeated
            shift = rounds * (max(self.now) - max(clocks[-1 - repeated]))
            self.now = [now + shift for now in self.now]
            self.free = [free + shift for free in self.free]
            self._here = [{key: time + shift for key, time in here.items()} for here in self._here]
            for spent, earlier in zip(self.spent, before[-1 - repeated], strict=True):
                for kind, old in zip(spent.kinds, earlier, strict=True):
                    for block in kind:
                        kind[block] += rounds * (kind[block] - old.get(block, 0.0))

    def _copied(self) -> list[list[dict[str, float]]]:
        return [[dict(kind) for kind in spent.kinds] for spent in self.spent]

    def wait_until(self, device: int, time: float, block: str) -> None:
        """Let a device do nothing before `time`."""
        if time > self.now[device]:
            self.spent[device].exposed[block] += time - self.now[device]
            self.now[device] = time

    def _advance(self, device: int) -> None:
        """Run a device's program up to the next thing that it must wait for."""
        todo = self._todo[device]
        while todo:
            if self._runs_out(device, todo[-1]):
                todo.pop()
            else:
                return

    def _runs_out(self, device: int, steps: Iterator[Step]) -> bool:
        """Go through steps; False where the device must wait before it takes the next."""
        now = self.now[device]
        compute, here = self.spent[device].compute, self._here[device]
        for step in steps:
            if type(step) is Compute:
                if step.poll_s:
                    self._starts[device].append(now)
                    self._polls[device].append((now + step.seconds, step.poll_s))
                now += step.seconds
                compute[step.block] += step.seconds
            elif type(step) is Await:
                self.now[device] = now
                if step.key not in here:
                    self._awaited[device] = step
                    return False
                self.wait_until(device, here[step.key], step.block)
                now = self.now[device]
            elif type(step) is Send:
                self._push(now, _POST, device, _Message(step.block, step.key, step.nbytes, step.hops))
            elif type(step) is Give:
                self._push(now, _GIVE, device, _Message(step.block, step.key, step.nbytes, 1))
            elif type(step) is Take:
                if self._taken[device].get(step.keys[0], 0) < step.least:
                    # What is here by now is known once all that happens before has happened.
                    self.now[device], self._offered[device] = now, step
                    self._push(now, _TAKE, device, _Message(step.block, 0, 0, 0))
                    return False
            else:
                self.now[device] = now
                self._push(now, _DRAIN, device, _Message(step.block, 0, 0, 0))
                return False
        self.now[device] = now
        return True

    def _take(self, device: int, time: float) -> None:
        """Take what is here, or wait for the first of it."""
        step, here = self._offered[device], self._here[device]
        assert step is not None, "a take is at hand"
        first = self._taken[device].get(step.keys[0], 0)
        stop = first
        while stop < len(step.keys) and here.get(step.keys[stop], inf) <= time:
            stop += 1
        if stop == first:
            self._todo[device].append(iter((Await(step.block, step.keys[first]), step)))
        else:
            self._taken[device][step.keys[0]] = stop
            self._todo[device].append(iter((*step.work(first, stop), step)))
        self._advance(device)

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
        """Send on what has arrived, at the next poll; not before the device has begun the program."""
        time = max(time, self._begun[device])
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


def period(clocks: Sequence[Sequence[float]]) -> int:
    """After how many layers everything is as it was, for every device; 0: it never was.

    Tiles that are taken together in one layer may come one by one in the next, and so on in turns.

    Args:
        clocks: when each device began the first layer, and ended it and those after it.
    """
    steps = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(clocks)]
    for count in (1, 2):
        pairs = zip(chain(*steps[-count:]), chain(*steps[-2 * count : -count]), strict=False)
        if len(steps) >= 2 * count and all(isclose(a, b, rel_tol=SETTLED) for a, b in pairs):
            return count
    return 0
