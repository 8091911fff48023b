"""`edgempi plan`: who would own what, with predicted memory and bytes, and on request why; starts no rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from edgempi.cluster.known import known_profile
from edgempi.config.files import write_atomic
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.plan.latency import predict_latency
from edgempi.plan.reasons import block_rows, rejected_rows
from edgempi.plan.text import program_to_yaml
from edgempi.plan.workload import Workload
from edgempi.tasks.model_job import ModelJob, locate_model, plan_job
from edgempi.tasks.tables import print_plan, size, table


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
    reasons = _reasons(config, job) if config.task.explain else None
    return {**job.as_dict(), "saved": config.task.save, "reasons": reasons}


def report(result: dict[str, Any], console: Console) -> None:
    """The table, and the reasons."""
    print_plan(console, result)
    if result["reasons"] is not None:
        _print_reasons(console, result["reasons"])
    if result["saved"]:
        console.print(f"Saved to {result['saved']}; run it with planner=manual planner.path={result['saved']}")


def _reasons(config: Config, job: ModelJob) -> dict[str, Any]:
    """What each block takes on each device in a prefill, and what was rejected, where a planner looked at more."""
    profile = known_profile(config.cluster)
    plan = job.program.prefill
    timed = profile.measured and profile.weight_dtype == plan.weight_dtype
    latency = predict_latency(plan, job.spec, job.work, profile) if timed else None
    names = [device.name for device in profile.devices]
    return {
        "total_s": None if latency is None else latency.total_s,
        "blocks": block_rows(plan, job.spec, job.work, names, latency),
        "rejected": rejected_rows(job.ranking),
    }


def _print_reasons(console: Console, reasons: dict[str, Any]) -> None:
    columns = ["device", "block", "compute", "wire", "exposed", "memory"]
    body, last = [], None
    for row in reasons["blocks"]:
        seconds = (row[key] for key in ("compute_s", "wire_s", "exposed_s"))
        name = row["device"] if row["device"] != last else ""
        last = row["device"]
        body.append([name, row["block"], *map(_ms, seconds), size(row["memory_bytes"])])
    console.print(table("Blocks (one prefill, all layers)", columns, body, words=2))
    if reasons["total_s"] is None:
        console.print(
            "Times need a profile, made with weights of the same dtype: edgempi profile task.save=profile.yaml, then "
            "cluster.profile=profile.yaml.\n"
        )
    else:
        console.print(
            f"Predicted: {reasons['total_s'] * 1e3:.1f} ms. Wire is how long a device's link is busy, exposed what it "
            "waits: for messages, and for devices that are behind.\n"
        )
    if reasons["rejected"]:
        rows = [[row["name"], _ms(row["seconds"]), row["why"]] for row in reasons["rejected"]]
        console.print(table("Rejected", ["way of sharing", "whole request", "why"], rows))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"
