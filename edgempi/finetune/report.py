"""The files of a run: `metrics.csv` while it goes on; `metrics.json`, `loss.png` and TensorBoard's for those who look.

Only the rank that talks to a person makes a `Report`. A file is there whole or as it was before; `metrics.csv` grows
line by line, and when a run is resumed a torn last line is dropped, as is what came after the checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgempi.config.files import write_atomic
from edgempi.finetune.course import Outcome
from edgempi.finetune.ledger import Spent
from edgempi.finetune.rhythm import Goal

CSV_FILE, JSON_FILE, PICTURE_FILE, TENSORBOARD_FOLDER = "metrics.csv", "metrics.json", "loss.png", "tensorboard"
COLUMNS = ("step", "epoch", "phase", "loss", "learning_rate", "grad_norm", "samples_per_s", "train_s")
"""Of every row of the log; those of evaluations, `eval_...`, are added when the first one comes."""
EVALUATED = "eval_"
EXTRA = "pip install 'edgempi[report]'"
DPI = 130

Row = Mapping[str, float | str]


class Report:
    """What is written of one run.

    Args:
        folder: of the run; it exists.
        resumed_at: the step that it is resumed from; None: it begins, and what another run left here is replaced.
        tensorboard: whether event files are wanted.
        say: takes a line for a person: what is left out because a package is missing.
    """

    def __init__(
        self, folder: Path, resumed_at: int | None = None, tensorboard: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self._folder, self._say = folder, say
        kept = [] if resumed_at is None else read_log(folder / CSV_FILE)
        self.rows: list[Row] = [row for row in kept if int(row["step"]) <= (resumed_at or 0)]
        """All rows of the log, those of before the resumption as texts."""
        self._columns = list(dict.fromkeys([*COLUMNS, *(name for row in self.rows for name in row)]))
        self._rewrite()
        self._events = self._open_events(resumed_at) if tensorboard else None

    def log(self, row: Row) -> None:
        """Add a row: `step` and whatever else there is of it, by name."""
        self.rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with open(self._folder / CSV_FILE, "a", encoding="utf-8", newline="") as file:
                file.write(_lines(self._columns, [row]))
        if self._events is not None:
            for tag, value in _tagged(row):
                self._events.add_scalar(tag, value, int(row["step"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write `metrics.json` and the picture; the last call."""
        write_atomic(self._folder / JSON_FILE, strict_json(summary) + "\n")
        if self._events is not None:
            self._events.close()
        try:
            draw_loss(self.rows, self._folder / PICTURE_FILE)
        except ImportError:
            self._say(f"edgempi: {PICTURE_FILE} is not drawn, since matplotlib is not installed ({EXTRA})")

    def _rewrite(self) -> None:
        header = _lines(self._columns, [dict(zip(self._columns, self._columns, strict=True))])
        write_atomic(self._folder / CSV_FILE, header + _lines(self._columns, self.rows))

    def _open_events(self, resumed_at: int | None) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say(f"edgempi: no TensorBoard files are written, since tensorboard is not installed ({EXTRA})")
            return None
        purge = None if resumed_at is None else resumed_at + 1
        return SummaryWriter(str(self._folder / TENSORBOARD_FOLDER), purge_step=purge)


def summary_of(outcome: Outcome, goal: Goal, settings: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What `metrics.json` says of a run.

    Args:
        outcome: of the loop.
        goal: what the best checkpoint is chosen by.
        settings: all that the run was started with, in JSON types; of them it keeps the fingerprint.
        rows: of the log.
    """
    position, best = outcome.position, outcome.position.best
    return {
        "ending": outcome.ending,
        "step": position.step,
        "epoch": position.epoch,
        "loss": float(rows[-1]["loss"]) if rows else math.nan,
        "final": dict(outcome.figures),
        "best": best and {"metric": goal.metric, "score": best.score, "step": best.step},
        "phases": {name: asdict(spent) for name, spent in outcome.spent.items()},
        "settings_fingerprint": settings_fingerprint(settings),
    }


def step_times(
    spent: Mapping[str, Spent], predicted_s: Mapping[str, float], accumulate: int
) -> dict[str, dict[str, float | None]]:
    """Seconds of a mini-batch by phase: `measured_s`, the median, and `predicted_s` as planned (None: it was not).

    Args:
        spent: by account; those without updates are no phases.
        predicted_s: by phase.
        accumulate: mini-batches of an update.
    """
    return {
        name: {"measured_s": one.median_s / accumulate, "predicted_s": predicted_s.get(name)}
        for name, one in spent.items()
        if one.updates
    }


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of settings, whatever the order of their names."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def strict_json(value: Any) -> str:
    """JSON as its standard has it: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log, cells that are empty left out; none where there is no file. A torn last line is dropped."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(whole))]


def draw_loss(rows: Sequence[Row], path: Path) -> None:
    """Draw the losses of training and evaluation over the steps, with a line where the phase changes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), (f"{EVALUATED}loss", "evaluation", "o--")):
        points = [(int(row["step"]), float(row[name])) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    for before, after in pairwise(rows):
        if before["phase"] != after["phase"]:
            axes.axvline((int(before["step"]) + int(after["step"])) / 2, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    if axes.lines:
        axes.legend()
    new = path.with_name(f".{path.name}.new")
    try:
        figure.savefig(new, format="png", dpi=DPI)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _lines(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _tagged(row: Row) -> list[tuple[str, float]]:
    """TensorBoard's tags and values, called as other trainers call them."""
    return [
        (f"eval/{name.removeprefix(EVALUATED)}" if name.startswith(EVALUATED) else f"train/{name}", value)
        for name, value in row.items()
        if name != "step" and not isinstance(value, str)
    ]


def _finite(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _finite(part) for key, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
        case float():
            return value if math.isfinite(value) else None
    return value
