"""A task whose first prompt says what its ranks do: a deed, and the ranks that do it (none named: all)."""

import os
import signal
import sys
import time

from edgempi.errors import UserError


def prepare(config):
    if config.data.prompts[0] == "refuse":
        raise UserError("request", value="refuse", rule="it is refused", remedy="Ask for something else")
    return {"prompt": config.data.prompts[0], "text": "ein ß, 1e-5", "number": 1e-5}


def run(job, world):
    import torch

    deed, *ranks = job.payload["prompt"].split()
    sys.stdout.write(f"rank {world.rank} is here\n")  # one write: the ranks' lines must not mix
    sys.stdout.flush()
    if not ranks or str(world.rank) in ranks:
        if deed == "mistake":
            raise UserError("request", value=deed, rule="nobody errs", remedy="Err not")
        if deed == "raise":
            raise RuntimeError("boom")
        if deed == "exit":
            sys.exit(3)
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "sleep":
            time.sleep(600)
        if deed == "work":
            from edgempi.comm.wire import FP32

            group, ones = world.group(0), torch.ones(1, 64, 1024)
            sys.stdout.write(f"rank {world.rank} is at work\n")
            sys.stdout.flush()
            while True:
                group.all_reduce(ones, FP32)
    world.barrier()
    return {
        "ranks": world.size,
        "payload": job.payload,
        "threads": torch.get_num_threads(),
        "timeout_s": world.timeout_s,
        "good": deed != "fail",
    }


def report(result, console):
    console.print(f"answered by {result['ranks']} ranks")


def FAILED(result):  # noqa: N802  the task protocol's name
    return not result["good"]
