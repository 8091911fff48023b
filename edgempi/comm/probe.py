"""Measure the links: latency and bandwidth of every pair of ranks, and how far their clocks stand apart."""

from __future__ import annotations

import time
from statistics import median

import torch

from edgempi.comm.world import World

SMALL_BYTES, SMALL_REPEATS = 8, 30
LARGE_BYTES, LARGE_REPEATS = 2**20, 5
CLOCK_REPEATS = 20


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


def clock_offsets(world: World) -> list[float]:
    """Seconds that each rank's clock is ahead of rank 0's. Collective: every rank; the result counts on rank 0.

    The answer of the shortest of several round trips is taken to have been written half-way (Cristian's method).
    """
    offsets = [0.0]
    stamp = torch.zeros(1, dtype=torch.float64)
    for peer in range(1, world.size):
        tries = []
        for _ in range(CLOCK_REPEATS):
            if world.rank == 0:
                before = time.time()
                world.send(stamp, peer)
                world.receive(stamp, peer)
                after = time.time()
                tries.append((after - before, float(stamp) - (before + after) / 2))
            elif world.rank == peer:
                world.receive(stamp, 0)
                stamp[0] = time.time()
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
