"""The program of a rank: `python -m mpi.ranks_silent RESULT`: rank 1 never answers, the others tell what they met.

Each of the three things that ranks do together is tried, one after another: a control message, a ring collective of a
stage, a transfer between stages.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from edgempi.comm import StuckError, World, open_world
from edgempi.comm.wire import FP32
from edgempi.plan.layout import Region

WAIT_S = 2.0
BOX = Region((0, 1), (0, 2), (0, 4))


def main(result_file: str) -> None:
    """Rank 1 sleeps until rank 0 has written; then the job is ended, since nobody can leave MPI in good order."""
    with open_world(WAIT_S) as world:
        group = world.group(0)
        if world.rank == 1:
            time.sleep(60)
        tried = {
            "control": world.barrier,
            "ring": lambda: group.all_reduce(torch.ones(1, 6, 4), FP32),
            "transfer": lambda: world.transfer(None, {1: BOX}, {0: BOX, 2: BOX}, torch.float32),
        }
        if world.rank == 0:
            with world.traffic.within("dec.1"):
                Path(result_file).write_text(json.dumps({name: _meet(world, run) for name, run in tried.items()}))
            world.abort(7)
        time.sleep(60)


def _meet(world: World, run: Callable[[], object]) -> dict[str, object]:
    start = time.monotonic()
    try:
        run()
    except StuckError as error:
        return {"said": str(error), "seconds": time.monotonic() - start}
    return {"said": f"rank {world.rank} met nothing", "seconds": 0.0}


if __name__ == "__main__":
    main(*sys.argv[1:])
