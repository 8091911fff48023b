"""One module per verb of `edgempi <task>`, each with the same three functions.

    prepare(config) -> payload   in the parent, or on rank 0 when MPI started us: check the user's input, plan;
                                 the payload is plain data (JSON types), so it can be frozen and broadcast
    run(job, world) -> result     on every rank; the result (JSON types) counts on rank 0.
                                 Absent where the task needs no MPI: then the payload is the result
    report(result, console)      on rank 0: the tables and sentences that a person reads

A task whose module has a `FAILED` predicate ends with exit status 1 where it holds of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from edgempi.config.schema import Config
from edgempi.errors import UserError

SUMMARIES = {
    "infer": "answer requests with the devices together, beside one device alone",
    "plan": "show (and save) who would own what, with predicted memory and bytes; starts no rank",
    "verify": "compare the shared model with transformers on one process, on your model and your plan",
    "bench": "time ways of sharing in turns, beside what their computation and their bytes alone would take",
    "profile": "measure each link, and what each device takes for a model's blocks or to train it, for the planners",
    "finetune": "train a model on your rows with the devices together, and keep what was learned",
    "lab": "bring up, use, check or take down the emulated LAN on this machine: up, status, run, check, down",
    "doctor": "versions, CPU, memory, clocks, latency and bandwidth of every host, and where they disagree",
}


@dataclass(frozen=True)
class Job:
    """What every rank receives: the validated configuration and what `prepare` made of it."""

    config: Config
    payload: dict[str, Any]


def load_task(name: str) -> ModuleType:
    """The module of the task called `name`."""
    from importlib import import_module

    if name not in SUMMARIES:
        raise UserError(
            "task", value=name, rule=f"a task is one of {', '.join(SUMMARIES)}", remedy="See edgempi --help"
        )
    return import_module(f"edgempi.tasks.{name}")
