"""The ranks' program of the lab's check: a ring that moves tiles while it computes; rank 0 prints the figures as JSON.

`python -m edgempi.lab.ring BOUND_S`, with the seconds that one tile takes on the wire. In every step a rank sends a
tile to the next one, receives one from the one before, and computes for most of that time, asking after its messages
between small products; that is what an overlapped block does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from edgempi.comm import World, open_world
from edgempi.comm.mpi import MpiTransport
from edgempi.comm.transport import wait_until
from edgempi.lab.layout import INTERFACE

TILE_BYTES = 142 * 1024 * 4
"""Half of BERT-Large's tokens, in fp32."""
STEPS, WARM = 50, 5
BUSY = 0.7
"""The share of a step's time on the wire that is filled with products."""
UNIT = (36, 1024, 256)
LIMIT_S = 60.0
TAG = 9
COUNTERS = Path("/sys/class/net") / INTERFACE / "statistics"


def main() -> None:
    """Measure; collective, every rank."""
    bound_s = float(sys.argv[1])
    torch.set_num_threads(1)
    with open_world(LIMIT_S) as world:
        found = world.gather_json(_measure(world, MpiTransport.world(), bound_s))
        if found is not None:
            print(json.dumps(found), flush=True)


def _measure(world: World, transport: MpiTransport, bound_s: float) -> dict[str, Any]:
    x, weight = torch.randn(UNIT[0], UNIT[1]), torch.randn(UNIT[1], UNIT[2])
    units = _units(x, weight, BUSY * bound_s)
    own, arriving = (torch.zeros(TILE_BYTES, dtype=torch.uint8) for _ in range(2))
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size

    def step() -> None:
        requests = [transport.irecv(arriving, before, TAG), transport.isend(own, after, TAG)]
        for _ in range(units):
            torch.mm(x, weight)
            transport.done(requests)
        wait_until(lambda: transport.done(requests), LIMIT_S, lambda s: f"rank {world.rank}: no tile for {s:.0f} s")

    for _ in range(WARM):
        step()
    world.barrier()
    sent_before, start = _counter("tx_bytes"), time.perf_counter()
    for _ in range(STEPS):
        step()
    taken_s = time.perf_counter() - start
    world.barrier()  # a tile that has left for the kernel may not have left the interface; one that has arrived has
    return {
        "host": world.host,
        "step_s": taken_s / STEPS,
        "payload_bytes": STEPS * TILE_BYTES,
        "wire_bytes": _counter("tx_bytes") - sent_before,
    }


def _units(x: torch.Tensor, weight: torch.Tensor, seconds: float) -> int:
    """How many products fill this much time on this device."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 10 * seconds:
        torch.mm(x, weight)
        count += 1
    return max(1, count // 10)


def _counter(name: str) -> int:
    return int((COUNTERS / name).read_text())


if __name__ == "__main__":
    main()
