"""`edgempi plan`: who would own what, with predicted memory and bytes; starts no rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from edgempi.config.files import write_atomic
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.plan.text import program_to_yaml
from edgempi.plan.workload import Workload
from edgempi.tasks.model_job import locate_model, plan_job
from edgempi.tasks.tables import print_plan


def prepare(config: Config) -> dict[str, Any]:
    """Plan for the synthetic workload `data.batch` x `data.length`; write it where `task.save` says."""
    _, spec = locate_model(config)
    data = config.data
    work = Workload(
        rows=data.batch,
        tokens=data.length,
        memory_tokens=data.length if spec.enc and spec.dec else 0,
        new_tokens=data.max_new_tokens if spec.generates else 0,
    )
    job = plan_job(config, spec, work)
    if config.task.save:
        try:
            write_atomic(Path(config.task.save).expanduser(), program_to_yaml(job.program))
        except OSError as error:
            raise UserError(
                "task.save", value=f"{config.task.save}: {error.strerror}", rule="its folder is there, and writable",
                remedy="Name a file in such a folder",
            ) from error  # fmt: skip
    return {**job.as_dict(), "saved": config.task.save}


def report(result: dict[str, Any], console: Console) -> None:
    """The table."""
    print_plan(console, result)
    if result["saved"]:
        console.print(f"Saved to {result['saved']}; run it with planner=manual planner.path={result['saved']}")
