"""One picture for each experiment, from the same records as its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.pac import published
from benchmarks.pac.cells import CACHES, ROWS, SCORED
from benchmarks.pac.published import BATCH, GIB, MODELS, SYSTEMS, TASKS, TECHNIQUES
from benchmarks.pac.reading import (
    CACHED,
    PAC,
    TRAIN,
    Record,
    asked,
    cache_bytes,
    find,
    held,
    hours,
    out_of_memory,
    score,
    step_s,
)
from benchmarks.pac.tables import FROM_CACHE
from benchmarks.pictures import bars, picture

SHOWN = "mrpc"
"""The task of the hours' picture."""


def draw(table: str, records: Sequence[Record], path: Path) -> bool:
    """Draw an experiment's picture; whether it has one."""
    if table not in _PICTURES:
        return False
    picture(path, lambda axes: _PICTURES[table](axes, records))
    return True


def _hours(axes: Axes, records: Sequence[Record]) -> None:
    heights = {}
    for technique, system in (*ROWS, PAC):
        taken = [hours(records, model, (technique, system), SHOWN) for model in MODELS]
        heights[f"{TECHNIQUES[technique]}, {SYSTEMS[system]}"] = [t if isinstance(t, float) else 0 for t in taken]
    figures = [published.HOURS[PAC][model][list(TASKS).index(SHOWN)] for model in MODELS]
    heights["PAC, published"] = [figure if isinstance(figure, float) else 0 for figure in figures]
    bars(axes, list(MODELS.values()), heights)
    axes.set_yscale("log")
    axes.set_ylabel(f"hours for {TASKS[SHOWN].name} (none: out of memory)")
    axes.legend(fontsize=5, ncols=2)


def _memory(axes: Axes, records: Sequence[Record]) -> None:
    shown = [(asked(record)["row"], record) for record in records]
    seen = [(row, held(record, CACHED if row in FROM_CACHE else TRAIN)) for row, record in shown]
    there = [(row, one) for row, one in seen if one is not None]
    kinds = {
        "weights": ("weights",),
        "activations, optimizer": ("activations", "optimizer"),
        "gradients": ("gradients",),
    }
    heights = {name: [sum(one[kind] for kind in own) / GIB for _, one in there] for name, own in kinds.items()}
    sums = [published.MEMORY_GIB.get(row, (0.0, 0.0, 0.0, 0.0))[3] for row, _ in there]
    heights["all, published"] = [
        published.CACHED_GIB if row == "cached" else total for (row, _), total in zip(there, sums, strict=True)
    ]
    bars(axes, [(FROM_CACHE.get(row) or TECHNIQUES[row]).replace(", ", ",\n") for row, _ in there], heights)
    axes.set_ylabel("GiB")


def _flops(axes: Axes, records: Sequence[Record]) -> None:
    names = list(records[0]["result"]["techniques"])
    heights = {
        MODELS[asked(record)["model"]]: [
            sum(record["result"]["techniques"][name][way] for way in ("forward", "backward")) / 1e12 for name in names
        ]
        for record in records
    }
    bars(axes, [(FROM_CACHE.get(name) or TECHNIQUES[name]).replace(" ", "\n") for name in names], heights)
    axes.set_ylabel(f"TFLOP of a mini-batch ({BATCH} x {published.LENGTH})")


def _accuracy(axes: Axes, records: Sequence[Record]) -> None:
    heights = {row: [_mean(records, row, task) for task in TASKS] for row in SCORED}
    bars(axes, [about.name for about in TASKS.values()], heights)
    axes.set_ylabel("score, mean over seeds")
    axes.set_ylim(40, 100)


def _ablation(axes: Axes, records: Sequence[Record]) -> None:
    timed = [find(records, kind="steps", row=cache) for cache in CACHES]
    there = [record for record in timed if record is not None and not out_of_memory(record)]
    exact = next((cache_bytes(record) for record in there if asked(record)["row"] == "fp32"), None)
    slowest = max((step_s(record, CACHED) or 0 for record in there), default=0)
    heights = {
        "bytes, of fp32": [cache_bytes(record) / exact if exact else 0 for record in there],
        "cached step, of the slowest": [(step_s(record, CACHED) or 0) / slowest if slowest else 0 for record in there],
    }
    bars(axes, [asked(record)["row"] for record in there], heights)


def _scaling(axes: Axes, records: Sequence[Record]) -> None:
    lines = [("ecofl", TRAIN), ("eddl", TRAIN), ("pac", TRAIN), ("pac", CACHED)]
    for system, phase in lines:
        found = [(n, step_s(find(records, row=f"{system}, {n}"), phase)) for n in (1, 2, 3, 4)]
        points = [(n, BATCH / taken) for n, taken in found if taken is not None]
        if points:
            label = SYSTEMS[system] + (f", {phase}" if system == "pac" else "")
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set_xticks([1, 2, 3, 4])
    axes.set_xlabel("devices")
    axes.set_ylabel("samples/s")
    if axes.lines:
        axes.legend(fontsize=7)


def _mean(records: Sequence[Record], row: str, task: str) -> float:
    found = score(records, row, task)
    return 0.0 if found is None else found[0]


_PICTURES: dict[str, Callable[[Axes, Sequence[Record]], None]] = {
    "hours": _hours,
    "memory": _memory,
    "flops": _flops,
    "accuracy": _accuracy,
    "ablation": _ablation,
    "scaling": _scaling,
}
