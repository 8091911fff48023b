"""One JSON per run: `run` (what was asked, of which commit, when), `result`, `meta` (with what, on what)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.backends import cpu

from edgempi.config.files import write_atomic

PACKAGES = ("edgempi", "torch", "transformers", "safetensors", "numpy", "mpi4py")


def write_record(folder: Path, experiment: str, parameters: dict[str, Any], result: dict[str, Any]) -> Path:
    """Write one run's record; returns its path.

    Args:
        folder: made if it is not there.
        experiment: the module of `benchmarks` that measured.
        parameters: all that the result depends on, in JSON types.
        result: the figures, in JSON types, with their units in their names.
    """
    now = datetime.now(UTC)
    time = now.isoformat(" ", "seconds")
    run = {"experiment": experiment, "parameters": parameters, "commit": commit(), "time": time}
    document = {"run": run, "result": result, "meta": _meta()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment}_{now:%Y%m%dT%H%M%S%f}.json"
    write_atomic(path, json.dumps(document, indent=2) + "\n")
    return path


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, oldest first."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda record: record["run"]["time"])


def commit() -> str | None:
    """The commit that ran, with a mark where the tree differs from it."""
    root = Path(__file__).parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _meta() -> dict[str, Any]:
    return {
        "packages": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "cpu": _cpu_model(),
        "cpu_capability": cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    """The processor as Linux names it; family and model tell apart what virtual machines name alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    fields = (line.partition(":") for line in lines)
    about = {name.strip(): value.strip() for name, _, value in fields}
    name = about.get("model name", platform.machine())
    if "cpu family" not in about:
        return name
    return f"{name}, family {about['cpu family']} model {about['model']}"
