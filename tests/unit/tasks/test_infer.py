"""What `infer` prints is what was asked and answered, also where that looks like markup."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from edgempi.tasks import infer

ROW = {
    "device": "device0", "layers": "dec 0", "heads": "all 1", "mlp_columns": "all 4", "tokens": "all 3",
    "vocabulary": "all 9", "memory_bytes": 1000, "sent_bytes": 10, "sent_bytes_per_token": 1,
}  # fmt: skip
RANK = {
    "host": "[red]host",
    "peak_bytes": 5,
    "bytes_read": 6,
    "bytes_sent": 7,
    "passes_s": 0.4,
    "compute_s": 0.3,
    "wire_s": None,
    "waited_s": 0.1,
    "linear_route": "plain",
}


def test_markup_in_requests_and_answers() -> None:
    answer = {"request": "open the [/kitchen] [bold]blind", "answer": "[/no] [dim]tag", "seconds": 0.1}
    result: dict[str, Any] = {
        "headline": "a plan", "plan": [ROW], "answers": [answer], "ranks": [RANK], "group_s": 0.1, "median_s": 0.1,
        "trace": None,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    infer.report(result, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (answer["request"], answer["answer"], RANK["host"]):
        assert text in said
