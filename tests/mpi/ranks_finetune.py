"""The program of a rank: `python -m mpi.ranks_finetune RESULT JOB ...` runs frozen jobs one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from edgempi.comm import open_world
from edgempi.config.frozen import thaw
from edgempi.tasks.finetune_run import train_together


def main(result: str, *jobs: str) -> None:
    """Write what rank 0 says of each."""
    torch.set_num_threads(1)
    with open_world(60) as world:
        found = [train_together(*thaw(Path(job).read_text(encoding="utf-8")), world) for job in jobs]
        if world.leads:
            Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
