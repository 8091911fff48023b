"""The pages with scores: by technique, and by the cache's form."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pac import published
from benchmarks.pac.cells import (
    BACKBONE,
    CACHES,
    CONTROL,
    FEW,
    PROJECTED,
    SCORED,
    SCORED_CACHED,
    SCORED_UNCACHED,
    SEEDS,
)
from benchmarks.pac.phrases import in_s
from benchmarks.pac.published import MODELS, TASKS, TECHNIQUES
from benchmarks.pac.reading import (
    CACHED,
    SWITCH,
    Record,
    asked,
    cache_bytes,
    differences,
    find,
    out_of_memory,
    score,
    step_s,
)
from benchmarks.phrases import DASH
from benchmarks.reduce import markdown


def by_technique(records: Sequence[Record]) -> list[str]:
    """The parts of the accuracy page."""
    parts = []
    for model in dict.fromkeys(asked(record)["model"] for record in records):
        own = [record for record in records if asked(record)["model"] == model]
        parts += [f"## {'The small encoder, made-up tasks' if model == BACKBONE else model}"]
        parts += [markdown([_row(own, row) for row in SCORED]), *_control(own)]
        parts += [f"Cached less uncached, in points: {_points(own, SCORED_CACHED, SCORED_UNCACHED)}."]
    parts += ["## Published", *(markdown(_published(model)) for model in MODELS)]
    parts.append(
        f"Scores in percent, as GLUE averages a task's metrics, the mean over {len(SEEDS)} seeds of data, order and "
        "start. The published ones are of other models and of GLUE itself; with its files and a real model, "
        "`python -m benchmarks.pac --only accuracy --glue FOLDER --model FOLDER` makes the same table. Of the made-up "
        "tasks' labels 6 % are wrong, so that 94 % is the best of their accuracies."
    )
    return parts


def by_cache(records: Sequence[Record]) -> list[str]:
    """The parts of the page on the cache's form."""
    timed = [record for record in records if asked(record)["kind"] == "steps" and not out_of_memory(record)]
    exact = find(timed, row="fp32")
    rows = []
    for cache in ("none", *CACHES, PROJECTED):
        record = find(timed, row=cache)
        cells = {"cache": cache, "MB": DASH, "of fp32": DASH, "between the epochs s": DASH}
        if record is not None:
            cells["MB"] = f"{cache_bytes(record) / 1e6:.1f}"
            cells["between the epochs s"] = in_s(record["result"]["spent"].get(SWITCH, {}).get("seconds"))
        if record is not None and exact is not None:
            cells["of fp32"] = f"{cache_bytes(record) / cache_bytes(exact):.3f}"
        cells["s a cached step"] = in_s(step_s(record, CACHED))
        rows.append(cells | {about.name: _score(records, scored_as(cache), task) for task, about in TASKS.items()})
    told = [
        f"`{cache}` less uncached, in points: {_points(records, scored_as(cache), uncached(cache))}."
        for cache in CACHES
    ]
    return [
        markdown(rows),
        *told,
        f"Bytes and times: T5-Large's width, four devices, {FEW} mini-batches of {published.BATCH} rows of "
        f"{published.LENGTH} tokens; bytes are those on the disks of all devices at the end. Scores: the small encoder "
        f"on the made-up tasks, means over {len(SEEDS)} seeds. What is projected is read by fixed downsamplers, whose "
        f"uncached form is `{PROJECTED}`.",
    ]


def scored_as(cache: str) -> str:
    """The row of the scores that belong to a form of the cache."""
    return {"none": SCORED_UNCACHED, "bf16": SCORED_CACHED}.get(cache, cache)


def uncached(cache: str) -> str:
    """The row of the scores without it."""
    return PROJECTED if cache == "int8_projected" else SCORED_UNCACHED


def _row(records: Sequence[Record], row: str) -> dict[str, str]:
    technique, _, form = row.partition(", ")
    name = TECHNIQUES[technique] + (f", {form}" if form else "")
    return {"technique": name} | {about.name: _score(records, row, task) for task, about in TASKS.items()}


def _control(records: Sequence[Record]) -> list[str]:
    found = [
        f"{TASKS[asked(record)['task']].name} {record['result']['score']:.1f} (loss "
        f"{record['result']['figures']['loss']:.3f})"
        for record in records
        if asked(record)["row"] == CONTROL
    ]
    if not found:
        return []
    text = "Of two classes, knowing nothing has a loss of 0.693; with such a loss, a score far from 50 is a coin's."
    return [f"Trained on shuffled labels: {', '.join(found)}. {text}"]


def _published(model: str) -> list[dict[str, str]]:
    return [
        {MODELS[model]: TECHNIQUES[technique]}
        | {about.name: f"{figure:.2f}" for about, figure in zip(TASKS.values(), figures[model], strict=True)}
        for technique, figures in published.ACCURACY.items()
    ]


def _points(records: Sequence[Record], row: str, reference: str) -> str:
    found = differences(records, row, reference)
    return ", ".join(f"{TASKS[task].name} {points:+.2f}" for task, points in found.items()) or DASH


def _score(records: Sequence[Record], row: str, task: str) -> str:
    found = score(records, row, task)
    return DASH if found is None else f"{found[0]:.2f}" + (f" ({found[1]} seeds)" if found[1] != len(SEEDS) else "")
