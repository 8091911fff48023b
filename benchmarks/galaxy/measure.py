"""Run the cells: make their checkpoints, bring the emulated LAN up, profile it, time, and take it down again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkpoint import write_checkpoint
from benchmarks.galaxy.cells import GPU, LENGTH, Cell
from benchmarks.galaxy.gpu import measure_gpu
from benchmarks.measure import isolated
from benchmarks.record import commit
from benchmarks.shapes import SHAPES
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.state import read_state

LIMIT_S = 1200
"""The longest that one command may take."""
LAST_LINES = 15
TRACED = "overlap"
"""The experiment whose runs leave traces, in their folders."""
UNPLANNED = ("table1", "overlap")
"""Experiments whose ways need no measured times."""


class CellError(RuntimeError):
    """A cell's command failed for another reason than its memory; the text holds what it said last."""


class Workshop:
    """Where cells are measured: one lab at a time, and files that are made once.

    Args:
        folder: for checkpoints, profiles and runs.
        repeats: rounds of `time` cells; None: what the experiment says.
        again: whether to profile clusters of which an earlier workshop left a profile.
    """

    def __init__(self, folder: Path, repeats: int | None, again: bool = False) -> None:
        self._folder, self._repeats = folder.resolve(), repeats
        self._again, self._profiled = again, set[Path]()
        self._up: tuple[str, ...] = ()

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Run one cell; its result, with the lab that it ran in and, of a `fit` cell, who was killed.

        Raises:
            CellError: it failed.
        """
        if cell.way == GPU:
            return dict(isolated(measure_gpu, cell.model, cell.layers, cell.length))
        lab = (f"cluster={cell.cluster}", *cell.lab)
        model = self._checkpoint(cell)
        self._bring_up(lab)
        if cell.way:
            return {**self._fit(cell, lab, model), "lab": _lab()}
        words = [*lab, *cell.settings, f"model.path={model}", f"data.length={cell.length}"]
        if self._repeats is not None:
            words.append(f"task.repeats={self._repeats}")
        if self._plans(cell):
            words.append(f"cluster.profile={self._profile(cell, lab, model)}")
        run = self._fresh("run")
        if cell.table == TRACED:
            words.append(f"task.trace={run / 'trace.json'}")
        edgempi("bench", *words, f"hydra.run.dir={run}")
        return {**json.loads((run / "result.json").read_text()), "lab": _lab()}

    def close(self) -> None:
        """Take the lab down."""
        if self._up:
            edgempi("lab", "down")
        self._up = ()

    def _bring_up(self, lab: tuple[str, ...]) -> None:
        if lab != self._up:
            self.close()
            edgempi("lab", "up", *lab)
            self._up = lab

    def _fit(self, cell: Cell, lab: Sequence[str], model: Path) -> dict[str, Any]:
        """One pass; whether the kernel let every rank live, beside what the planner said."""
        run, groups = self._fresh("run"), Cgroups.of_machine()
        hosts = read_state().lan.hosts  # type: ignore[union-attr]
        before = {host: groups.kills(host) for host in hosts}
        words = [*lab, *cell.settings, f"model.path={model}", f"data.length={cell.length}", "data.batch=1"]
        words += ["weights=bf16", "planner=even", "task.repeats=1", "bench.floor=false", f"hydra.run.dir={run}"]
        killed: list[str] = []
        try:
            edgempi("bench", *words)
        except CellError:
            killed = [host for host in hosts if groups.kills(host) > before[host]]
            if not killed:
                raise
        job = yaml.safe_load((run / "job.yaml").read_text())
        misfit = job["payload"]["ways"][0]["misfit"]
        result: dict[str, Any] = {"killed": killed, "misfit": misfit}
        if not killed:
            ranks = json.loads((run / "result.json").read_text())["ways"][0]["measured"]["ranks"]
            result["ranks"] = [{key: rank[key] for key in ("host", "peak_bytes", "predicted_bytes")} for rank in ranks]
        return result

    def _plans(self, cell: Cell) -> bool:
        return cell.table not in UNPLANNED

    def _profile(self, cell: Cell, lab: Sequence[str], model: Path) -> Path:
        """The cluster measured for this model, once for each lab: its times hold for all lengths."""
        path = self._folder / "profiles" / f"{cell.model}_{_key(*lab, cell.dtype, commit())}.yaml"
        if not path.exists() or (self._again and path not in self._profiled):
            path.parent.mkdir(parents=True, exist_ok=True)
            words = [*lab, f"model.path={model}", f"data.length={LENGTH}", f"task.save={path}"]
            edgempi("profile", *words, f"hydra.run.dir={self._fresh('profile')}")
        self._profiled.add(path)
        return path

    def _checkpoint(self, cell: Cell) -> Path:
        """A random checkpoint of the cell's shape, kept; of those that a `fit` cell runs whole, one at a time."""
        path = self._folder / "models" / f"{cell.model}_{cell.layers}_{cell.dtype}"
        if not path.exists():
            for other in (self._folder / "models").glob("*_bf16"):
                shutil.rmtree(other)
            making = path.with_name(path.name + ".part")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            # A process of its own gives all its memory back before the ranks start.
            isolated(write_checkpoint, making, SHAPES[cell.model], cell.layers, cell.dtype)
            making.rename(path)
        return path

    def _fresh(self, kind: str) -> Path:
        return self._folder / kind / f"{time.time_ns()}"


@contextmanager
def workshop(folder: Path, repeats: int | None, again: bool = False) -> Iterator[Workshop]:
    """A workshop that leaves no lab behind."""
    made = Workshop(folder, repeats, again)
    try:
        yield made
    finally:
        with suppress(CellError):
            made.close()


def edgempi(*words: str) -> None:
    """Run one command line to its end.

    Raises:
        CellError: it failed, or took too long.
    """
    command = [sys.executable, "-m", "edgempi", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CellError(f"{' '.join(words)}: more than {LIMIT_S} s") from error
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-LAST_LINES:])
        raise CellError(f"edgempi {' '.join(words)} ended with status {done.returncode}:\n{said}")


def _lab() -> dict[str, Any]:
    state = read_state()
    return {} if state is None else state.as_dict()


def _key(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]
