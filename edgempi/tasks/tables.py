"""Tables that several tasks print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def size(nbytes: float) -> str:
    """Bytes for a person: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Table:
    """A table with its first columns, the `words`, on the left and numbers on the right."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def print_plan(console: Console, job: Mapping[str, Any]) -> None:
    """The plan: who owns what, with predicted memory and bytes."""
    rows: list[Mapping[str, Any]] = job["plan"]
    decodes = any(row["sent_bytes_per_token"] for row in rows)
    columns = ["device", "layers", "heads", "MLP columns", "tokens", "vocabulary", "memory", "sends"]
    body = [
        [
            row["device"], row["layers"], row["heads"], row["mlp_columns"], row["tokens"],
            row["vocabulary"], size(row["memory_bytes"]), size(row["sent_bytes"]),
            *([size(row["sent_bytes_per_token"])] if decodes else []),
        ]
        for row in rows
    ]  # fmt: skip
    console.print(table("Plan", [*columns, "per token"] if decodes else columns, body))
    console.print(f"{job['headline']}. Memory is the predicted peak above imports; bytes are per pass.\n")
