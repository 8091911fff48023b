"""The program of a rank: `python -m mpi.ranks_finetune RESULT JOB ...` runs frozen jobs one after another.

With a word `kill=RANK:STEP` this rank kills itself where that step, counted from 1, would begin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch

from edgempi.comm import open_world
from edgempi.config.frozen import thaw
from edgempi.finetune.executor import Executor
from edgempi.tasks.finetune_run import train_together

KILL = "kill="


def main(result: str, *words: str) -> None:
    """Write what rank 0 says of each."""
    torch.set_num_threads(1)
    with open_world(60) as world:
        for word in words:
            rank, _, step = word.removeprefix(KILL).partition(":")
            if word.startswith(KILL) and world.rank == int(rank):
                _die_at(int(step))
        jobs = [Path(word) for word in words if not word.startswith(KILL)]
        found = [train_together(*thaw(job.read_text(encoding="utf-8")), world) for job in jobs]
        if world.leads:
            Path(result).write_text(json.dumps(found))


def _die_at(step: int) -> None:
    done, numbers = Executor.step, count(1)

    def counted(*words: Any, **named: Any) -> Any:
        if next(numbers) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(*words, **named)

    Executor.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
