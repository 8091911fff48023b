"""A plan of training as tables: phases, devices, what moves, and what was rejected (`plan.training.explain`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from edgempi.tasks.tables import size, table

DEVICE_COLUMNS = ["device", "stage", "layers", "rows", "under way", "busy", "idle", "link", "sends"]
MEMORY_COLUMNS = [
    "device", "weights", "gradients", "optimizer", "activations", "buffers", "libraries", "peak", "budget",
]  # fmt: skip
LONG_S = 120.0
"""From here on times are told in minutes, and from an hour on in hours."""


def print_training(console: Console, told: Mapping[str, Any]) -> None:
    """The tables of what `explain_training` says."""
    rows = [
        [
            row["phase"], row["plan"], str(row["microbatches"]), str(row["epochs"]), str(row["steps"]),
            _s(row["step_s"]), _s(row["seconds"]),
        ]
        for row in told["phases"]
    ]  # fmt: skip
    columns = ["phase", "plan", "microbatches", "epochs", "steps", "one step", "in all"]
    console.print(table(f"{told['system']}, {told['technique']}: {_s(told['total_s'])}", columns, rows, words=2))
    for phase, devices in told["devices"].items():
        console.print(table(f"One step, {phase}", DEVICE_COLUMNS, list(map(_device_row, devices)), words=3))
        console.print(table(f"Memory, {phase}", MEMORY_COLUMNS, list(map(_memory_row, devices))))
    if told["moving"] is not None:
        _print_moving(console, told["moving"])
    if len(told["considered"]) > 1:
        rows = [[row["continuation"], _s(row["total_s"]), "*" * row["chosen"]] for row in told["considered"]]
        console.print(table("After the first epoch", ["way", "all epochs", "chosen"], rows))
    if told["rejected"]:
        rows = [[row["name"], _s(row["total_s"]), row["why"]] for row in told["rejected"]]
        console.print(table("Rejected", ["first epoch, later ones", "all epochs", "why"], rows))


def _device_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["device"], "-" if row["stage"] is None else str(row["stage"]), row["layers"], str(row["rows"]),
        str(row["depth"]), *(_s(row[key]) for key in ("busy_s", "idle_s", "wire_s")), size(row["sent_bytes"]),
    ]  # fmt: skip


def _memory_row(row: Mapping[str, Any]) -> list[str]:
    budget = row["budget_bytes"]
    return [row["device"], *map(size, row["memory"].values()), "-" if budget is None else size(budget)]


def _print_moving(console: Console, moving: Mapping[str, Any]) -> None:
    rows: Sequence[Sequence[str]] = [
        [row["device"], size(row["sent_bytes"]), size(row["received_bytes"])] for row in moving["devices"]
    ]
    console.print(table("Redistribution", ["device", "sends", "receives"], rows))
    console.print(
        f"{size(moving['cache_bytes'])} of cached activations and {size(moving['parameter_bytes'])} of parameters with "
        f"what the optimizer keeps for them, in {_s(moving['seconds'])}.\n"
    )


def _s(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 3600:
        return f"{seconds / 3600:.2f} h"
    if seconds >= LONG_S:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
