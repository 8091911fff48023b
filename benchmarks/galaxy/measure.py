"""Run the cells: make their checkpoints, bring the emulated LAN up, profile it, time, and take it down again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.checkpoint import write_checkpoint
from benchmarks.galaxy.cells import GPU, LENGTH, Cell
from benchmarks.galaxy.gpu import measure_gpu
from benchmarks.galaxy.hidden import read_trace
from benchmarks.measure import isolated
from benchmarks.record import commit
from benchmarks.shapes import SHAPES
from benchmarks.workshop import CellError, Emulated, drift, edgempi, lab_record
from edgempi.cluster.profile_text import load_profile
from edgempi.cluster.start import signals_raise
from edgempi.config.load import compose
from edgempi.config.schema import PlannerName
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.probe import INPUTS, OUTPUTS, ROWS
from edgempi.lab.state import read_state

TRACED = "overlap"
"""The experiment whose runs leave traces, in their folders."""
FIT_DRIFT, FIT_ATTEMPTS = 0.08, 3
"""By how much a profile's products may be off a device's nominal speed; else the cluster is profiled again."""


class Workshop:
    """Where cells are measured: one lab at a time, and files that are made once.

    Args:
        folder: for checkpoints, profiles and runs.
        repeats: rounds of `time` cells; None: what the cell says.
        again: whether to profile clusters of which an earlier workshop left a profile.
        attempts: how often a `time` cell is measured at most, while its devices do not keep their speed.
    """

    def __init__(self, folder: Path, repeats: int | None, again: bool = False, attempts: int = 3) -> None:
        self._folder, self._repeats = folder.resolve(), repeats
        self._again, self._profiled = again, set[Path]()
        self._lab = Emulated(attempts)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Run one cell; its result, with the lab that it ran in and, of a `fit` cell, who was killed.

        Raises:
            CellError: it failed.
        """
        if cell.way == GPU:
            return dict(isolated(measure_gpu, cell.model, cell.layers, cell.length))
        lab = (f"cluster={cell.cluster}", *cell.lab)
        model = self._checkpoint(cell)
        self._lab.enter(lab)
        return {**(self._fit if cell.way else self._time)(cell, lab, model), "lab": lab_record()}

    def close(self) -> None:
        """Take the lab down."""
        self._lab.close()

    def _time(self, cell: Cell, lab: Sequence[str], model: Path) -> dict[str, Any]:
        """Time the ways while the devices keep their speed."""
        profile = [f"cluster.profile={self._profile(cell, lab, model)}"] if self._plans(cell) else []
        return self._lab.steadily(lambda: self._bench(cell, [*lab, *profile], model))

    def _bench(self, cell: Cell, lab: Sequence[str], model: Path) -> dict[str, Any]:
        words = [*lab, *cell.settings, f"model.path={model}", f"data.length={cell.length}"]
        if self._repeats is not None:
            words.append(f"task.repeats={self._repeats}")
        run = self._fresh("run")
        if cell.table == TRACED:
            words.append(f"task.trace={run / 'trace.json'}")
        edgempi("bench", *words, f"hydra.run.dir={run}")
        result: dict[str, Any] = json.loads((run / "result.json").read_text())
        if cell.table == TRACED:
            for way in result["ways"]:
                trace = json.loads((run / f"trace_{way['name']}.json").read_text())
                if way["measured"]["overlap"] != "blocking":
                    way["traced"] = read_trace(trace, result["link_bits_per_s"], way["subtiles"])
        return result

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
        """Whether a way of this cell needs measured times."""
        ways = compose(["task=bench", *cell.settings]).bench.ways.values()
        return any(way.planner in (PlannerName.galaxy, PlannerName.auto) for way in ways)

    def _profile(self, cell: Cell, lab: Sequence[str], model: Path) -> Path:
        """The cluster measured for this model, once for each lab: its times hold for all lengths."""
        path = self._folder / "profiles" / f"{cell.model}_{_key(*lab, cell.dtype, commit() or '')}.yaml"
        if not path.exists() or (self._again and path not in self._profiled):
            path.parent.mkdir(parents=True, exist_ok=True)
            words = [*lab, f"model.path={model}", f"data.length={LENGTH}", f"task.save={path}"]
            for _ in range(FIT_ATTEMPTS):
                edgempi("profile", *words, f"hydra.run.dir={self._fresh('profile')}")
                self._lab.disturbed()
                if drift(_profiled_speeds(path)) <= FIT_DRIFT:
                    break
                self._lab.tune()
        self._profiled.add(path)
        return path

    def _checkpoint(self, cell: Cell) -> Path:
        """A random checkpoint of the cell's shape; all are kept, some 15 GB."""
        path = self._folder / "models" / f"{cell.model}_{cell.layers}_{cell.dtype}"
        if not path.exists():
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
def workshop(folder: Path, repeats: int | None, again: bool = False, attempts: int = 3) -> Iterator[Workshop]:
    """A workshop that leaves no lab behind, also where this process is told to stop."""
    made = Workshop(folder, repeats, again, attempts)
    with signals_raise():
        try:
            yield made
        finally:
            with suppress(CellError):
                made.close()


def _profiled_speeds(path: Path) -> dict[str, float]:
    """What a profile's fit says of the lab's probe product, as a share of each device's nominal rate."""
    up = read_state()
    assert up is not None
    flops = {device.host: device.flops for device in up.lan.devices}
    return {
        device.host: 2 * ROWS * OUTPUTS * INPUTS / device.times.linear.seconds(ROWS, OUTPUTS, INPUTS)
        / flops[device.host]
        for device in load_profile(str(path)).devices
        if device.times is not None
    }  # fmt: skip


def _key(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]
