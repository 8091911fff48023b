"""Measure the links: latency and bandwidth of pairs of ranks, alone or while all share the wire, and their clocks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from edgempi.comm.transfer import Pending
from edgempi.comm.transport import wait_until
from edgempi.comm.wire import FP32
from edgempi.comm.world import World
from edgempi.plan.layout import Region

SMALL_BYTES, SMALL_REPEATS = 8, 30
LARGE_BYTES, LARGE_REPEATS = 2**20, 5
CLOCK_REPEATS = 20
STREAM_S = 0.5
"""How long all ranks stream to their peers at each distance in the ring."""
FEWEST_MESSAGES, MOST_MESSAGES = 4, 64
TILE_BYTES, MOST_TILES, MOVING_ROUNDS = 2**18, 500, 3
"""What is sent while computing: as large as a tile of a few dozen tokens."""
UNDER_WAY = 2
"""Messages that are under way together in one direction, so that the wire never waits for a rank to answer."""
FLOAT_BYTES = 4


def links(world: World) -> list[dict[str, float]]:
    """Each pair in turn, with the others asleep. Collective: every rank; the result counts on rank 0.

    Returns:
        `a`, `b`, `latency_s` (half a round trip of 8 bytes) and `bits_per_s` (of 1 MiB one way) for each pair.
    """
    pairs = [(a, b) for a in range(world.size) for b in range(a + 1, world.size)]
    found = []
    for a, b in pairs:
        times = (0.0, 0.0)
        if world.rank in (a, b):
            peer = b if world.rank == a else a
            small = _one_way_s(world, peer, SMALL_BYTES, SMALL_REPEATS)
            times = (small, _one_way_s(world, peer, LARGE_BYTES, LARGE_REPEATS))
        latency_s, large_s = world.all_gather_json(times)[a]
        per_byte_s = max(large_s - latency_s, 1e-9) / LARGE_BYTES
        found.append({"a": a, "b": b, "latency_s": latency_s, "bits_per_s": 8 / per_byte_s})
    return found


def shared_links(world: World, distance: int) -> list[dict[str, Any]]:
    """Every rank sends to the one `distance` after it and receives from the one as far before, all at once.

    Collective: every rank; the result counts on rank 0. All distances from 1 to N - 1 give every ordered pair.

    Returns:
        For each source: `source`, `target`, `latency_s` (the median exchange of 8 bytes, which is what a ring step
        pays beside its bytes, our own polling included) and `bits_per_s` (of a stream of messages of up to 1 MiB,
        its first one left out, since shapers and TCP let it start faster or slower).
    """
    world.barrier()
    steps = [_stream_s(world, distance, SMALL_BYTES, 1) for _ in range(SMALL_REPEATS)]
    one_s = max(world.all_gather_json(_stream_s(world, distance, LARGE_BYTES // 8, 1)))
    nbytes = LARGE_BYTES if one_s < STREAM_S / FEWEST_MESSAGES / 8 else LARGE_BYTES // 8
    count = min(MOST_MESSAGES, max(FEWEST_MESSAGES, round(STREAM_S / one_s * (LARGE_BYTES / 8) / nbytes)))
    taken_s = _stream_s(world, distance, nbytes, count)
    source = (world.rank - distance) % world.size
    rate = 8 * nbytes * (count - 1) / max(taken_s, 1e-9)
    mine = {"source": source, "target": world.rank, "latency_s": median(steps), "bits_per_s": rate}
    return sorted(world.all_gather_json(mine), key=lambda link: link["source"])


def moving_s(world: World, work: Callable[[], object], bits_per_s: float) -> float:
    """What it takes from computing to send a byte and receive another. Collective: every rank.

    Every rank computes while it streams to the next one, and then as much without: copies, the library's and the
    kernel's work on both sides are the difference, under this library and over these links.

    Args:
        world: all ranks.
        work: a piece of computing of some milliseconds; communication is polled after each.
        bits_per_s: of the slowest link, which says how much is sent; equal on all ranks.

    Returns:
        Seconds for each byte sent and received, of this rank.
    """
    count = min(MOST_TILES, max(FEWEST_MESSAGES, round(STREAM_S * bits_per_s / 8 / TILE_BYTES)))
    more_s = 0.0
    work()
    for _ in range(MOVING_ROUNDS):
        world.barrier()
        stream, calls, start = _Stream(world, 1, TILE_BYTES, count), 0, time.perf_counter()
        while not stream.drive():
            work()
            calls += 1
        more_s += time.perf_counter() - start
        world.barrier()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        more_s -= time.perf_counter() - start
    return max(0.0, more_s) / (MOVING_ROUNDS * count * TILE_BYTES)


def clock_offsets(world: World, clock: Callable[[], float] = time.time) -> list[float]:
    """Seconds that each rank's `clock` is ahead of rank 0's. Collective: every rank; the result counts on rank 0.

    The answer of the shortest of several round trips is taken to have been written half-way (Cristian's method).
    """
    offsets = [0.0]
    stamp = torch.zeros(1, dtype=torch.float64)
    for peer in range(1, world.size):
        tries = []
        for _ in range(CLOCK_REPEATS):
            if world.rank == 0:
                before = clock()
                world.send(stamp, peer)
                world.receive(stamp, peer)
                after = clock()
                tries.append((after - before, float(stamp) - (before + after) / 2))
            elif world.rank == peer:
                world.receive(stamp, 0)
                stamp[0] = clock()
                world.send(stamp, 0)
        offsets.append(min(tries)[1] if tries else 0.0)
    return offsets


def _one_way_s(world: World, peer: int, nbytes: int, repeats: int) -> float:
    """Half the median round trip, both ways in turn; called by the two ranks of a pair."""
    buffer = torch.zeros(nbytes, dtype=torch.uint8)
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        if world.rank < peer:
            world.send(buffer, peer)
            world.receive(buffer, peer)
        else:
            world.receive(buffer, peer)
            world.send(buffer, peer)
        taken.append(time.perf_counter() - start)
    return median(taken[1:]) / 2


def _stream_s(world: World, distance: int, nbytes: int, count: int) -> float:
    """Seconds that `count` messages took to arrive, from the arrival of the first where there are several.

    Sending and receiving go on independently of each other: a slow link out does not slow the link in.
    """
    stream = _Stream(world, distance, nbytes, count)
    start = time.perf_counter()
    stream.finish()
    return stream.landed_s[-1] - (stream.landed_s[0] if count > 1 else start)


class _Stream:
    """Messages to the rank `distance` after this one, and as many from the one as far before. Collective."""

    def __init__(self, world: World, distance: int, nbytes: int, count: int) -> None:
        box = Region((0, 1), (0, 1), (0, nbytes // FLOAT_BYTES))
        after, before = (world.rank + distance) % world.size, (world.rank - distance) % world.size
        sent = torch.zeros(box.shape)
        self._world = world
        self._leaving = _Queue(count, lambda: world.begin_transfer({world.rank: box}, {after: box}, FP32).send(sent))
        self._arriving = _Queue(count, lambda: world.begin_transfer({before: box}, {world.rank: box}, FP32).receives)
        self._where = f"rank {world.rank} on {world.host} streams to rank {after} and from rank {before}"
        self.landed_s = self._arriving.landed_s
        """When each message was here."""

    def drive(self) -> bool:
        """Drive communication; whether all has left and arrived."""
        return self._arriving.drive() & self._leaving.drive()

    def finish(self) -> None:
        """Wait for the end."""
        wait_until(self.drive, self._world.timeout_s, lambda s: f"{self._where}, {s:.0f} s")


class _Queue:
    """Messages of one direction, a few under way together.

    Args:
        count: of messages.
        begin: starts one.
    """

    def __init__(self, count: int, begin: Callable[[], Pending]) -> None:
        self._count, self._begin, self._begun = count, begin, 0
        self._under_way: deque[Pending] = deque()
        self.landed_s: list[float] = []

    def drive(self) -> bool:
        """Begin what may begin, note what has landed; whether all has."""
        while self._begun < min(self._count, len(self.landed_s) + UNDER_WAY):
            self._under_way.append(self._begin())
            self._begun += 1
        while self._under_way and self._under_way[0].poll():
            self._under_way.popleft()
            self.landed_s.append(time.perf_counter())
        return len(self.landed_s) == self._count
