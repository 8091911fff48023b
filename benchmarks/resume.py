"""Measure cells one after another, each once: a record of equal parameters at the same commit stands for its cell."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import commit, read_records, write_record
from benchmarks.workshop import CellError


@dataclass(frozen=True)
class Task:
    """A cell as it is to be measured.

    Attributes:
        name: for whoever watches.
        parameters: all that its result depends on, in JSON types.
        measure: gives its result, or raises `CellError`.
    """

    name: str
    parameters: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


def key_of(parameters: dict[str, Any]) -> str:
    """Parameters as a text by which they can be compared."""
    return json.dumps(parameters, sort_keys=True)


def measure_tasks(tasks: Sequence[Task], experiment: str, folder: Path, again: bool) -> int:
    """Measure what has no record yet, and write one for each; how many failed.

    Args:
        tasks: in order.
        experiment: the package that measures.
        folder: of the records.
        again: measure all of them.
    """
    known = {
        key_of(record["run"]["parameters"]) for record in (read_records(folder) if folder.exists() else [])
        if record["run"]["commit"] == commit()
    }  # fmt: skip
    failed, taken_s = 0, list[float]()
    for number, task in enumerate(tasks, 1):
        name = f"[{number}/{len(tasks)}] {task.name}"
        if not again and key_of(task.parameters) in known:
            print(f"{name}: measured before", flush=True)
            continue
        start = time.perf_counter()
        try:
            write_record(folder, experiment, task.parameters, task.measure())
            said = ""
        except CellError as error:
            failed += 1
            said = " FAILED"
            print(f"{name}:\n{error}", file=sys.stderr, flush=True)
        taken_s.append(time.perf_counter() - start)
        left_s = (len(tasks) - number) * sum(taken_s) / len(taken_s)
        spent = f"{taken_s[-1]:.0f} s, {sum(taken_s) / 60:.0f} min so far, about {left_s / 60:.0f} min left"
        print(f"{name}:{said} {spent}", flush=True)
    return failed
