"""From records to Markdown: for every experiment the published figure beside ours, and how ours was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.pac import published
from benchmarks.pac.cells import chosen
from benchmarks.pac.phrases import in_hours, in_s, rate
from benchmarks.pac.published import GIB, MODELS, OOM, SYSTEMS, TASKS, TECHNIQUES
from benchmarks.pac.reading import CACHED, TRAIN, Record, asked, find, held, out_of_memory, peak_bytes, step_s
from benchmarks.pac.scored import by_cache, by_technique
from benchmarks.pac.timetable import timetable
from benchmarks.phrases import DASH, kept_speed, machines
from benchmarks.reduce import markdown

FROM_CACHE = {"cached": "Parallel Adapters, cached", "cached, AdamW": "the same with AdamW"}
"""The rows of the memory table that are of the cached phase."""


def page(table: str, records: Sequence[Record]) -> str:
    """An experiment's page."""
    title, parts = TABLES[table]
    return "\n\n".join([f"# {title}", *parts(records), machines(records)]) + "\n"


def _memory(records: Sequence[Record]) -> list[str]:
    rows = []
    for record in records:
        row = asked(record)["row"]
        seen = held(record, CACHED if row in FROM_CACHE else TRAIN)
        if seen is not None:
            rows.append(_memory_row(row, record["result"]["trained"], seen))
    return [
        "T5-Large, 16 rows of 128 tokens, one device, in GiB, in the slides' accounting (activations with the "
        "optimizer's state):",
        markdown(rows) if rows else "Nothing was measured.",
        "Weights, gradients and the optimizer's state are the bytes of the tensors that the device really holds; "
        "activations are all that its resident memory rises beyond these and its imports while the phase goes on, "
        "libraries' buffers included. SGD without momentum: the published activations of full fine-tuning have no room "
        "for AdamW's moments.",
    ]


def _memory_row(row: str, trained: int, seen: Mapping[str, int]) -> dict[str, str]:
    figures = published.MEMORY_GIB.get(row)
    cells = {"technique": FROM_CACHE.get(row) or TECHNIQUES[row], "trained": f"{trained:,}"}
    ours = (seen["weights"], seen["activations"] + seen["optimizer"], seen["gradients"])
    for place, kind in enumerate(("weights", "activations", "gradients")):
        cells[f"{kind} published"] = DASH if figures is None else f"{figures[place]:.2f}"
        cells[f"{kind} ours"] = f"{ours[place] / GIB:.2f}"
    total = published.CACHED_GIB if row == "cached" else None if figures is None else figures[3]
    cells["total published"] = DASH if total is None else f"{total:.2f}"
    cells["total ours"] = f"{sum(ours) / GIB:.2f}"
    cells["optimizer's part"] = f"{seen['optimizer'] / GIB:.2f}"
    cells["peak resident"] = f"{seen['peak'] / GIB:.2f}"
    return cells


def _flops(records: Sequence[Record]) -> list[str]:
    rows = []
    for record in records:
        found = record["result"]["techniques"]
        whole = found["full"]["forward"] + found["full"]["backward"]
        for name, flops in found.items():
            rows.append(
                {
                    "model": MODELS[asked(record)["model"]],
                    "technique": FROM_CACHE.get(name) or TECHNIQUES[name],
                    "trained": f"{flops['trained']:,}",
                    "forward TFLOP": f"{flops['forward'] / 1e12:.3f}",
                    "backward TFLOP": f"{flops['backward'] / 1e12:.3f}",
                    "of full": f"{100 * (flops['forward'] + flops['backward']) / whole:.1f} %",
                }
            )
    text = (
        f"A mini-batch of {published.BATCH} rows of {published.LENGTH} tokens and labels of two: products alone, two "
        "operations for each multiplication. The published figure is a picture without numbers."
    )
    return [text, markdown(rows)]


def _scaling(records: Sequence[Record]) -> list[str]:
    rows = []
    for devices in (1, 2, 3, 4):
        for system in ("ecofl", "eddl", "pac"):
            record = find(records, row=f"{system}, {devices}")
            if record is None:
                continue
            fits = not out_of_memory(record)
            rows.append(
                {
                    "devices": str(devices),
                    "system": SYSTEMS[system],
                    "technique": TECHNIQUES[chosen(asked(record)["settings"], "technique")],
                    "samples/s": rate(step_s(record)) if fits else OOM,
                    "from the cache": rate(step_s(record, CACHED)),
                    "peak MB": f"{peak_bytes(record) / 1e6:.0f}" if fits else DASH,
                    "devices' speed, after": kept_speed(record["result"].get("speeds")),
                }
            )
    text = "T5-Base, mini-batches of 16 whatever the number of devices. The published curves have no numbers."
    return [text, markdown(rows)]


def _grouping(records: Sequence[Record]) -> list[str]:
    rows = []
    for record in records:
        told = record["result"]["told"]
        if told is None:
            continue
        first = told["phases"][0]
        rows.append(
            {
                "model": MODELS[asked(record)["model"]],
                "task": TASKS[asked(record)["row"]].name,
                "stages": _stages(told["devices"][TRAIN]),
                "microbatches": str(first["microbatches"]),
                "a step": in_s(first["step_s"]),
                "later epochs": told["continuation"],
                "all epochs, hours": in_hours(told["total_s"] / 3600),
                "next best": _next_best(told["rejected"]),
            }
        )
    return ["What `system=pac` chooses on four devices, by measured times:", markdown(rows) if rows else "Nothing."]


def _stages(devices: Sequence[Mapping[str, Any]]) -> str:
    """Each stage's layers, and its devices with their rows of a mini-batch."""
    found: dict[int, tuple[str, list[str]]] = {}
    for row in devices:
        if row["stage"] is not None:
            found.setdefault(row["stage"], (row["layers"], []))[1].append(f"{row['device']} ({row['rows']} rows)")
    return "; ".join(f"{layers} on {', '.join(own)}" for _, (layers, own) in sorted(found.items()))


def _next_best(rejected: Sequence[Mapping[str, Any]]) -> str:
    return f"{rejected[0]['name']} ({rejected[0]['why']})" if rejected else DASH


TABLES: dict[str, tuple[str, Callable[[Sequence[Record]], list[str]]]] = {
    "hours": ("Hours of a whole fine-tuning", timetable),
    "memory": ("Memory by technique", _memory),
    "flops": ("Operations by technique", _flops),
    "accuracy": ("Scores by technique", by_technique),
    "ablation": ("The cache's form", by_cache),
    "scaling": ("One to four devices", _scaling),
    "grouping": ("Which devices share which layers", _grouping),
}
"""Title and parts of each experiment's page."""
