"""The program of a rank: `python -m mpi.ranks_shipped ORDER RESULT` lets the shipped model write, shared in every way.

ORDER is JSON: folder, spec, prompts (ids), new_tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from edgempi.comm import open_world
from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.inference.greedy import generate
from edgempi.inference.runner import Runner
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec

WAYS = {
    "hybrid": ParallelConfig(),
    "tensor": ParallelConfig(modes=[Sharing.tensor]),
    "pipeline": ParallelConfig(modes=[Sharing.single], pipeline=True),
}


def main(order_file: str, result_file: str) -> None:
    """Write what follows each prompt, under every way."""
    torch.set_num_threads(1)
    order = json.loads(Path(order_file).read_text())
    spec = ModelSpec.from_dict(order["spec"])
    written = {}
    with open_world(60) as world:
        for way, parallel in WAYS.items():
            program = plan_program(spec, [1.0] * world.size, parallel, PlannerConfig(), Forms())
            runner = Runner(world, program, spec, Path(order["folder"]))
            prompts = (torch.tensor([ids]) for ids in order["prompts"])
            written[way] = [generate(runner, prompt, order["new_tokens"])[0].tolist() for prompt in prompts]
            runner.close()
        everyone = world.gather_json(written)
        if everyone is not None:
            Path(result_file).write_text(json.dumps(everyone))


if __name__ == "__main__":
    main(*sys.argv[1:])
