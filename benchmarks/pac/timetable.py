"""The page of hours: every row's, published and ours, what PAC's phases take, and who is out of memory."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pac import published
from benchmarks.pac.cells import FEW, FIRST, MORE, ROWS, STEPS, chosen
from benchmarks.pac.phrases import in_hours, in_s
from benchmarks.pac.published import MODELS, OOM, SYSTEMS, TASKS, TECHNIQUES
from benchmarks.pac.reading import (
    PAC,
    SWITCH,
    Record,
    asked,
    find,
    hours,
    out_of_memory,
    pac_steps_s,
    peak_bytes,
    predicted_off,
    row_of,
    step_s,
    time_scale,
)
from benchmarks.phrases import DASH, kept_speed
from benchmarks.reduce import markdown


def timetable(records: Sequence[Record]) -> list[str]:
    """The page's parts."""
    parts = []
    for model, name in MODELS.items():
        rows = [_row(records, model, row) for row in (*ROWS, PAC)]
        parts += [f"## {name}", markdown(rows), *_phases(records, model)]
    cut = sorted({asked(record)["layers"] for record in records if asked(record)["kind"] == "steps"})
    return [*parts, *_fits(records), *_how(), f"Layers of each stack: {', '.join(map(str, cut))}."]


def _row(records: Sequence[Record], model: str, row: tuple[str, str]) -> dict[str, str]:
    technique, system = row
    record = find(records, kind="steps", model=model, row=FIRST) if row == PAC else row_of(records, model, *row)
    cells = {"technique": TECHNIQUES[technique], "system": SYSTEMS[system]}
    figures = published.HOURS.get(row, {}).get(model, (None,) * len(TASKS))
    for (task, about), figure in zip(TASKS.items(), figures, strict=True):
        cells[f"{about.name} published"] = in_hours(figure)
        cells[f"{about.name} ours"] = in_hours(hours(records, model, row, task))
    fits = record is not None and not out_of_memory(record)
    off = [f"{100 * share:+.0f} %" for share in predicted_off(record)] if record is not None else []
    cells["s a step"] = in_s(step_s(record))
    cells["predicted off by"] = ", ".join(off) or DASH
    cells["peak MB"] = f"{peak_bytes(record) / 1e6:.0f}" if record is not None and fits else DASH
    cells["devices' speed, after"] = DASH if record is None else kept_speed(record["result"].get("speeds"))
    return cells


def _phases(records: Sequence[Record], model: str) -> list[str]:
    """What PAC's phases take."""
    rows = [{"PAC": name, "seconds": f"{in_s(taken)} a step"} for name, taken in pac_steps_s(records, model).items()]
    for batches in (FEW, MORE):
        record = find(records, kind="steps", model=model, row=f"cached, {batches}")
        if record is None or out_of_memory(record) or SWITCH not in record["result"]["spent"]:
            continue
        taken = record["result"]["spent"][SWITCH]["seconds"] * time_scale(record)
        rows.append({"PAC": "between the epochs", "seconds": f"{taken:.2f} for {asked(record)['rows']} samples"})
    return [markdown(rows)]


def _fits(records: Sequence[Record]) -> list[str]:
    rows = [
        {
            "model": MODELS[asked(record)["model"]],
            "technique": TECHNIQUES[asked(record)["row"]],
            "system": SYSTEMS[chosen(asked(record)["settings"], "system")],
            "the planner's word": "fits" if record["result"]["misfit"] is None else "does not fit",
            "under the real limit": ", ".join(f"{host} killed" for host in record["result"]["killed"]) or "lived",
        }
        for record in records
        if asked(record)["kind"] == "fit"
    ]
    return ["## Run in spite of the planner", markdown(rows)] if rows else []


def _how() -> list[str]:
    return [
        f"Steps are measured, of {published.BATCH} rows of {published.LENGTH} tokens: {STEPS} updates of `edgempi "
        "finetune` (AdamW, fp32) under the real memory limit, the first one not counted; hours are the number of steps "
        "times their median, evaluation apart, at the full speed of devices and links (measured times `time_scale`). "
        "Where a model was cut, they are in proportion to its layers. PAC's are "
        "those of the first epoch, planned for the whole task, then the redistribution (a line over samples through "
        f"runs of {FEW} and {MORE} mini-batches), then the cached epochs; with one epoch nothing is cached.",
        f"`{OOM}`: the planner finds no plan, with however small microbatches, that fits every device's 2.6 GiB above "
        "what its imports take, or the kernel killed a rank. Asteroid's rows, and Parallel Adapters on one device, are "
        "not the paper's. Kernels are the same in all rows; weights that gradients pass through are kept unpacked, "
        "those of a backbone that only runs forward packed.",
    ]
