"""What records say: times, hours, memory, scores. The ground of tables and pictures alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import mean
from typing import Any

from benchmarks.pac.cells import FEW, FIRST, MORE, ROWS, SIDE, SINGLE, chosen
from benchmarks.pac.published import BATCH, OOM, TASKS
from benchmarks.shapes import SHAPES
from benchmarks.wire import on_wire_s
from edgempi.plan.training.sizes import GRADIENT_BYTES

Record = Mapping[str, Any]
TRAIN, CACHED, SWITCH = "train", "cached", "switch"
PAC = ("parallel_adapter", "pac")
COLLABORATIVE = tuple(row for row in ROWS if row[0] in ("adapter", "lora") and row[1] != "standalone")
"""The rows that PAC is to beat with as many devices."""
ALONE = tuple(row for row in ROWS if row[1] == "standalone")


def asked(record: Record) -> Mapping[str, Any]:
    """The parameters of a record's cell."""
    parameters: Mapping[str, Any] = record["run"]["parameters"]
    return parameters


def find(records: Sequence[Record], **wanted: Any) -> Record | None:
    """The first record whose cell has these parameters."""
    return next((r for r in records if all(asked(r)[name] == value for name, value in wanted.items())), None)


def row_of(records: Sequence[Record], model: str, technique: str, system: str) -> Record | None:
    """The record of a row of the hours table."""
    return next(
        (
            record for record in records
            if (asked(record)["kind"], asked(record)["model"], asked(record)["row"]) == ("steps", model, technique)
            and chosen(asked(record)["settings"], "system") == system
        ),
        None,
    )  # fmt: skip


def out_of_memory(record: Record) -> bool:
    """Whether the planner found no plan that fits, or the kernel killed a rank."""
    return record["result"]["misfit"] is not None or bool(record["result"]["killed"])


def time_scale(record: Record) -> float:
    """How much faster than those that they stand for the devices and links of a run were."""
    return float(record["result"]["time_scale"])


def step_s(record: Record | None, phase: str = TRAIN) -> float | None:
    """The median of a phase's updates, at full speed; of a model that was cut, in proportion to its layers."""
    if record is None or out_of_memory(record) or phase not in record["result"]["steps"]:
        return None
    whole = SHAPES[asked(record)["model"]].layers / asked(record)["layers"]
    return float(record["result"]["steps"][phase]["step_s"]["p50"]) * whole * time_scale(record)


def switch_s(records: Sequence[Record], model: str, samples: int) -> float | None:
    """What lies between the first epoch and the cached ones, by a line over samples through what was measured."""
    points = [
        (asked(record)["rows"], record["result"]["spent"][SWITCH]["seconds"] * time_scale(record))
        for batches in (FEW, MORE)
        if (record := find(records, kind="steps", model=model, row=f"cached, {batches}")) is not None
        and not out_of_memory(record) and SWITCH in record["result"]["spent"]
    ]  # fmt: skip
    if len(points) < 2:
        return None
    (few, fast), (more, slow) = points
    each = max(0.0, (slow - fast) / (more - few))
    return max(0.0, fast - few * each) + samples * each


def pac_steps_s(records: Sequence[Record], model: str) -> dict[str, float | None]:
    """Seconds of an update of PAC: in the first of several epochs, in a single one, from the cache."""
    cached = (find(records, kind="steps", model=model, row=f"cached, {batches}") for batches in (MORE, FEW))
    return {
        FIRST: step_s(find(records, kind="steps", model=model, row=FIRST)),
        SINGLE: step_s(find(records, kind="steps", model=model, row=SINGLE)),
        CACHED: next((taken for record in cached if (taken := step_s(record, CACHED)) is not None), None),
    }


def hours(records: Sequence[Record], model: str, row: tuple[str, str], task: str) -> float | str | None:
    """What a row takes for a task; `OOM`, or None where it was not measured."""
    about = TASKS[task]
    batches = ceil(about.samples / BATCH)
    if row == PAC:
        taken, between = pac_steps_s(records, model), switch_s(records, model, about.samples)
        if about.epochs == 1:
            alone = taken[SINGLE]
            return None if alone is None else batches * alone / 3600
        first, cached = taken[FIRST], taken[CACHED]
        if first is None or cached is None or between is None:
            return None
        return (batches * first + between + (about.epochs - 1) * batches * cached) / 3600
    record = row_of(records, model, *row)
    if record is None:
        return None
    each = step_s(record)
    return OOM if each is None else about.epochs * batches * each / 3600


def best(records: Sequence[Record], model: str, rows: Sequence[tuple[str, str]], task: str) -> float | None:
    """The hours of the fastest of some rows that fit."""
    found = (hours(records, model, row, task) for row in rows)
    return min((taken for taken in found if isinstance(taken, float)), default=None)


def speed_up(records: Sequence[Record], model: str, rows: Sequence[tuple[str, str]], task: str) -> float | None:
    """How many times as fast as the fastest of some rows PAC is."""
    ours, theirs = hours(records, model, PAC, task), best(records, model, rows, task)
    return theirs / ours if isinstance(ours, float) and theirs is not None else None


def side_s(records: Sequence[Record], model: str) -> float | None:
    """What one device's share of a cached update takes without any communication."""
    return step_s(find(records, kind="steps", model=model, row=SIDE), CACHED)


def gradient_floor_s(record: Record) -> float:
    """What the ring sum of all gradients takes on a link at its line rate."""
    lan = record["result"]["lab"]["lan"]
    devices = len(lan["devices"])
    nbytes = 2 * (devices - 1) / devices * GRADIENT_BYTES * record["result"]["trained"]
    return on_wire_s(nbytes, lan["link_bits_per_s"]) * time_scale(record)


def stock_step_s(records: Sequence[Record], counted: Sequence[Record], model: str) -> float | None:
    """What an update of the first epoch would take if the backbone's products were torch's stock ones.

    The products' part of it follows from their operations and the devices' rate; that part is multiplied by how much
    longer stock products take.
    """
    first = find(records, kind="steps", model=model, row=FIRST)
    taken, linears = step_s(first), find(records, kind="linears", model=model)
    count = find(counted, kind="count", model=model)
    if first is None or taken is None or linears is None or count is None:
        return None
    rate = sum(device["flops"] for device in first["result"]["lab"]["lan"]["devices"])
    whole = SHAPES[model].layers / asked(count)["layers"]
    products_s = whole * count["result"]["backbone_linears"] / rate * time_scale(first)
    return taken + (linears["result"]["stock_over_packed"]["p50"] - 1) * min(products_s, taken)


def predicted_off(record: Record) -> list[float]:
    """By which share each predicted update was too long (below zero: too short)."""
    result = record["result"]
    if out_of_memory(record):
        return []
    return [
        result["predicted_s"][phase] / seen["step_s"]["p50"] - 1
        for phase, seen in result["steps"].items()
        if phase in result["predicted_s"]
    ]


def held(record: Record, phase: str) -> Mapping[str, int] | None:
    """What the fullest device held in a phase, in bytes by kind; None where none trained in it."""
    ranks = [rank["held"][phase] for rank in record["result"]["ranks"] if rank["held"] and phase in rank["held"]]
    return max(ranks, key=lambda one: one["peak"], default=None)


def peak_bytes(record: Record) -> int:
    """The most that a device held above its imports."""
    return max(rank["peak_bytes"] for rank in record["result"]["ranks"])


def cache_bytes(record: Record) -> int:
    """Of all devices' caches on disk, while the last epoch was read."""
    return sum(rank["cache"]["disk_bytes"] for rank in record["result"]["ranks"] if rank["cache"])


def score(records: Sequence[Record], row: str, task: str) -> tuple[float, int] | None:
    """The mean score over seeds, and how many they are."""
    found = [
        record["result"]["score"] for record in records
        if (asked(record)["kind"], asked(record)["row"], asked(record)["task"]) == ("score", row, task)
    ]  # fmt: skip
    return (mean(found), len(found)) if found else None


def differences(records: Sequence[Record], row: str, reference: str) -> dict[str, float]:
    """By task, how many points a row's mean score is above another's of as many seeds."""
    found = {}
    for task in TASKS:
        own, other = score(records, row, task), score(records, reference, task)
        if own is not None and other is not None and own[1] == other[1]:
            found[task] = own[0] - other[0]
    return found
