"""Run the cells: make models, rows, profiles and plans, bring the emulated LAN up, fine-tune, and read what it left."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import write_checkpoint
from benchmarks.measure import isolated, spread
from benchmarks.pac.backbone import make_backbone
from benchmarks.pac.cells import BACKBONE, CONTROL, Cell
from benchmarks.pac.counting import count
from benchmarks.pac.linears import measure_linears
from benchmarks.pac.planning import is_profiled, planned
from benchmarks.pac.published import LENGTH
from benchmarks.pac.rows import even_words, write_even_rows, write_tokenizer
from benchmarks.record import commit
from benchmarks.shapes import SHAPES
from benchmarks.workshop import CellError, Emulated, edgempi, lab_record
from edgempi.cluster.start import signals_raise
from edgempi.config.load import compose
from edgempi.finetune.data.generated import write_task
from edgempi.finetune.data.glue import glue_task
from edgempi.finetune.metrics import mean_score
from edgempi.finetune.report import CSV_FILE, read_log
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.session import LAUNCHER_BYTES
from edgempi.lab.state import read_state
from edgempi.models.source import read_spec

TIMED = ("evaluation.every_steps=null", "evaluation.save_every_steps=null", "evaluation.log_every_steps=1")
JUDGED = ("evaluation.every_steps=1000000000", "evaluation.save_every_steps=null", "evaluation.log_every_steps=null")
"""Evaluated once, at the end."""
KEPT_OF_RANK = ("host", "peak_bytes", "import_bytes", "bytes_sent", "waited_s", "cache", "moved", "held")
WARM_UPS = 1
"""Updates of a phase that are not counted."""
MADE_LENGTH = 64
"""Tokens that rows of the made-up tasks may have; none has as many."""


class Workshop:
    """Where cells are measured: one lab at a time, and files that are made once.

    Args:
        folder: for models, rows, profiles and runs.
        again: whether to profile what an earlier workshop has profiled.
        attempts: how often a `steps` cell is measured at most, while its devices do not keep their speed.
        held_out: rows of a made-up task to evaluate on.
    """

    def __init__(self, folder: Path, again: bool = False, attempts: int = 3, held_out: int = 2_000) -> None:
        self._folder, self._held_out = folder.resolve(), held_out
        self._again, self._profiled = again, set[tuple[Path, str]]()
        self._lab = Emulated(attempts)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Run one cell; its result.

        Raises:
            CellError: it failed.
        """
        kinds: dict[str, Callable[[Cell], dict[str, Any]]] = {
            "steps": self._steps, "fit": self._fit, "held": self._held, "score": self._score, "plan": self._plan,
        }  # fmt: skip
        if cell.kind == "count":
            return count(cell.model, cell.layers)
        if cell.kind == "linears":
            return dict(isolated(measure_linears, cell.model))
        return kinds[cell.kind](cell)

    def close(self) -> None:
        """Take the lab down."""
        self._lab.close()

    def _steps(self, cell: Cell) -> dict[str, Any]:
        """Updates timed while the devices keep their speed; only the planner's word where nothing fits."""
        lab, words = self._words(cell)
        said = planned(words, read_spec(self._model(cell)), cell.rows)
        if said["misfit"] is not None:
            return said
        self._lab.enter(lab)
        if cell.profiled:
            words = [*words, f"cluster.profile={self._profile(cell)}"]
        found = self._lab.steadily(lambda: self._finetune(words, TIMED))
        scale = compose(lab).cluster.lab.time_scale  # type: ignore[union-attr]
        return {"misfit": None, **found, "lab": lab_record(), "time_scale": scale}

    def _fit(self, cell: Cell) -> dict[str, Any]:
        """A run that the planner refuses, under the real memory limit: whether the kernel kills a rank."""
        lab, words = self._words(cell)
        refused = [f"cluster={cell.cluster}", *words[len(lab) :]]
        said = planned(refused, read_spec(self._model(cell)), cell.rows)
        self._lab.enter(lab)
        up, groups = read_state(), Cgroups.of_machine()
        assert up is not None
        try:
            for device in compose([f"cluster={cell.cluster}"]).cluster.named_devices().values():
                lent = device.memory_budget_bytes or 0
                groups.set_memory(device.host, up.baseline_bytes + LAUNCHER_BYTES + lent)
            found = self._finetune(words, TIMED)
        finally:
            self._lab.close()  # its limits are not those that it was brought up with
        return {"misfit": said["misfit"], "killed": found["killed"], "ranks": found.get("ranks", [])}

    def _held(self, cell: Cell) -> dict[str, Any]:
        """What one device of this machine holds."""
        return self._finetune(self._words(cell)[1], TIMED)

    def _score(self, cell: Cell) -> dict[str, Any]:
        """A run to its end, and how good it is."""
        model = self._backbone() if cell.model == BACKBONE else Path(cell.model)
        rows = Path(cell.glue) if cell.glue else self._task(cell)
        words = [
            f"cluster={cell.cluster}", *cell.settings, f"model.path={model}", "finetune_data.source=glue",
            f"finetune_data.task={cell.task}", f"finetune_data.path={rows}", f"finetune_data.seed={cell.seed}",
            f"finetune_data.max_tokens={LENGTH if cell.glue else MADE_LENGTH}",
        ]  # fmt: skip
        found = self._finetune(words, JUDGED)
        figures = found["final"]
        return {**found, "score": mean_score(glue_task(cell.task).metrics, figures), "figures": figures}

    def _plan(self, cell: Cell) -> dict[str, Any]:
        """What the planner chooses with measured times."""
        lab, words = self._words(cell)
        self._lab.enter(lab)
        profile = f"cluster.profile={self._profile(cell)}"
        return planned([*words, profile], read_spec(self._model(cell)), cell.rows)

    def _finetune(self, words: Sequence[str], evaluation: Sequence[str]) -> dict[str, Any]:
        """One run of `edgempi finetune`: what its files say; or `killed`, the devices whose memory it went over."""
        run, up = self._fresh("run"), read_state()
        hosts = up.lan.hosts if up is not None else []
        groups = Cgroups.of_machine() if hosts else None
        before = {host: groups.kills(host) for host in hosts if groups}
        own = (f"cache.folder={run / 'cache'}", "cache.keep=false", f"hydra.run.dir={run}")
        try:
            edgempi("finetune", *words, *evaluation, *own)
            result = json.loads((run / "result.json").read_text())
            return _read(result, read_log(run / CSV_FILE))
        except CellError:
            killed = [host for host in hosts if groups and groups.kills(host) > before[host]]
            if not killed:
                raise
            return {"killed": killed}
        finally:
            shutil.rmtree(run, ignore_errors=True)

    def _words(self, cell: Cell) -> tuple[list[str], list[str]]:
        """The lab's words, and all of the command line, for rows that are only timed."""
        lab = [f"cluster={cell.cluster}", *cell.lab]
        rows = Path("rows.csv") if cell.kind == "plan" else self._rows(cell.rows)  # a plan reads none
        return lab, [*lab, *cell.settings, f"model.path={self._model(cell)}", *even_words(rows)]

    def _profile(self, cell: Cell) -> Path:
        """The cluster measured for a model and a technique; a file for each model."""
        lab, words = self._words(cell)
        path = self._folder / "profiles" / f"{cell.model}_{_key(*lab, str(cell.layers), commit() or '')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        named, mark = [*words, f"cluster.profile={path}"], (path, cell.technique)
        there = path.exists() and is_profiled(named, read_spec(self._model(cell)))
        if not there or (self._again and mark not in self._profiled):
            run = self._fresh("profile")

            def measure() -> dict[str, Any]:
                edgempi("profile", *named, "task.training=true", f"data.length={LENGTH}", f"hydra.run.dir={run}")
                return {}

            self._lab.steadily(measure)
        self._profiled.add(mark)
        return path

    def _model(self, cell: Cell) -> Path:
        """A random checkpoint of the cell's shape, with a tokenizer."""

        def make(folder: Path) -> None:
            # A process of its own gives all its memory back before the ranks start.
            isolated(_write_model, folder, cell.model, cell.layers)

        return self._made(Path("models") / f"{cell.model}_{cell.layers}", make)

    def _backbone(self) -> Path:
        """The small encoder, trained."""
        return self._made(Path("models") / BACKBONE, lambda folder: make_backbone(folder, self._fresh("backbone")))

    def _task(self, cell: Cell) -> Path:
        """A made-up task in its official layout."""
        shuffled = cell.row == CONTROL
        sizes = {"train": cell.rows, "dev": self._held_out, "test": 1}
        name = f"{cell.task}_{cell.seed}_{cell.rows}_{self._held_out}" + "_shuffled" * shuffled
        return self._made(
            Path("tasks") / name,
            lambda folder: write_task(folder, cell.task, seed=cell.seed, shuffled=shuffled, **sizes),
        )

    def _rows(self, count: int) -> Path:
        """Rows of one length."""
        return self._made(Path("rows") / str(count), lambda folder: write_even_rows(folder / "rows.csv", count)) / (
            "rows.csv"
        )

    def _made(self, name: Path, make: Callable[[Path], object]) -> Path:
        """A folder that is made once, and is there whole or not at all."""
        path = self._folder / name
        if not path.exists():
            making = path.with_name(path.name + ".part")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            make(making)
            making.rename(path)
        return path

    def _fresh(self, kind: str) -> Path:
        return self._folder / kind / f"{time.time_ns()}"


@contextmanager
def workshop(folder: Path, again: bool = False, attempts: int = 3, held_out: int = 2_000) -> Iterator[Workshop]:
    """A workshop that leaves no lab behind, also where this process is told to stop."""
    made = Workshop(folder, again, attempts, held_out)
    with signals_raise():
        try:
            yield made
        finally:
            with suppress(CellError):
                made.close()


def step_times(log: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """By phase, how many updates there were, what the first took, and quantiles of the others."""
    found: dict[str, list[float]] = {}
    before = 0.0
    for row in log:
        after = float(row["train_s"])
        found.setdefault(row["phase"], []).append(after - before)
        before = after
    return {
        phase: {"updates": len(taken), "first_s": taken[0], "step_s": _spread(taken[WARM_UPS:] or taken)}
        for phase, taken in found.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return spread(values) if len(values) > 1 else dict.fromkeys(("p20", "p50", "p80"), values[0])


def _read(result: Mapping[str, Any], log: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What of a run's files is kept."""
    kept = ("final", "predicted_s", "continuation", "trained", "plan", "assumed")
    return {
        "killed": [],
        "steps": step_times(log),
        "spent": result["phases"],
        "ranks": [{name: rank.get(name) for name in KEPT_OF_RANK} for rank in result["ranks"]],
        **{name: result[name] for name in kept},
    }


def _write_model(folder: Path, model: str, layers: int) -> None:
    write_checkpoint(folder, SHAPES[model], layers, "fp32")
    write_tokenizer(folder, json.loads((folder / "config.json").read_text())["vocab_size"])


def _key(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:10]
