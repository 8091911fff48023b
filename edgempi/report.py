"""Hand a task's result over: tables for a person, JSON for a program, a file for later."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from edgempi.config.files import write_atomic
from edgempi.config.schema import Config

FAILED, USER_ERROR = 1, 2
"""Exit statuses: something failed, be it edgempi or what a task examined; the user's mistake kept it from running."""


def deliver(task: ModuleType, config: Config, result: dict[str, Any]) -> int:
    """Show, print and store the result; return the exit status. Called once per job.

    Args:
        task: its module, with `report` and, where a result can mean failure, `FAILED`.
        config: says where the result goes.
        result: JSON types.
    """
    document = json.dumps(result, indent=2, ensure_ascii=False)
    directory = config.output.directory
    if directory is not None and Path(directory).is_dir():
        write_atomic(Path(directory) / "result.json", document + "\n")
    task.report(result, _console(config.output.json))
    if config.output.json:
        print(document, flush=True)
    sys.stderr.flush()
    failed = getattr(task, "FAILED", None)
    return FAILED if failed is not None and failed(result) else 0


def _console(on_stderr: bool) -> Console:
    # A file or pipe has no width of its own, and tables need more than the 80 columns that rich then takes.
    console = Console(stderr=on_stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=on_stderr, width=120)
