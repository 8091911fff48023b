"""The program of a rank: `python -m mpi.ranks_memory ORDER RESULT` loads a model, runs it, and tells its peak memory.

A process of its own, because a peak cannot be taken back. ORDER is JSON: folder, spec, tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from edgempi.comm import open_world
from edgempi.config.schema import ParallelConfig, PlannerConfig
from edgempi.inference.runner import Runner
from edgempi.parallel.batch import Batch
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec


def main(order_file: str, result_file: str) -> None:
    """Measure."""
    torch.set_num_threads(1)
    order = json.loads(Path(order_file).read_text())
    spec = ModelSpec.from_dict(order["spec"])
    with open_world(60) as world:
        torch.ones(8, 8) @ torch.ones(8, 8)  # the first use of torch is part of the baseline
        baseline = _peak_bytes()
        program = plan_program(spec, [1.0] * world.size, ParallelConfig(), PlannerConfig(), Forms())
        runner = Runner(world, program, spec, Path(order["folder"]))
        runner.forward(Batch(dec_ids=torch.arange(order["tokens"])[None]))
        peaks = world.gather_json(_peak_bytes() - baseline)
        if peaks is not None:
            Path(result_file).write_text(json.dumps(peaks))


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(*sys.argv[1:])
