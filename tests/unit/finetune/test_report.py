"""The files of a run: what they hold, and that a resumed run goes on with them."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgempi.comm import lone_world
from edgempi.finetune.checkpoint.position import Best, Position
from edgempi.finetune.course import Ending, Moved, Outcome
from edgempi.finetune.ledger import Ledger, Spent
from edgempi.finetune.progress import EVERY_S, Bar
from edgempi.finetune.report import (
    COLUMNS,
    CSV_FILE,
    JSON_FILE,
    PICTURE_FILE,
    TENSORBOARD_FOLDER,
    Report,
    read_log,
    settings_fingerprint,
    step_times,
    strict_json,
    summary_of,
)
from edgempi.finetune.rhythm import Goal

POSITION = Position(step=6, epoch=2, batch=1, seed=0, order="", best=Best(0.75, 4))


def _row(step: int, loss: float, **more: float) -> dict[str, float | str]:
    phase = "train" if step < 3 else "cached"
    return {
        "step": step, "epoch": step / 2, "phase": phase, "loss": loss, "learning_rate": 1e-3, "grad_norm": 0.1,
        "samples_per_s": 8.5, "train_s": float(step), **more,
    }  # fmt: skip


def test_the_log_is_a_table_of_all_rows(tmp_path: Path) -> None:
    report = Report(tmp_path)
    assert (tmp_path / CSV_FILE).read_text() == ",".join(COLUMNS) + "\n"
    report.log(_row(1, 2.0))
    report.log(_row(2, math.nan, eval_loss=1 / 3, eval_f1=0.5))
    report.log(_row(3, 0.25))
    assert (tmp_path / CSV_FILE).read_text().splitlines() == [
        "step,epoch,phase,loss,learning_rate,grad_norm,samples_per_s,train_s,eval_loss,eval_f1",
        "1,0.5,train,2.0,0.001,0.1,8.5,1.0,,",
        "2,1.0,train,nan,0.001,0.1,8.5,2.0,0.3333333333333333,0.5",
        "3,1.5,cached,0.25,0.001,0.1,8.5,3.0,,",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [CSV_FILE]


def test_a_resumed_run_goes_on_with_its_log(tmp_path: Path) -> None:
    whole = Report(tmp_path)
    for step in range(1, 6):
        whole.log(_row(step, 1 / step, **({"eval_f1": 0.5} if step == 2 else {})))
    expected = (tmp_path / CSV_FILE).read_text()
    path = tmp_path / CSV_FILE
    path.write_text(expected + "6,3.0,cached,0.1")  # torn off
    again = Report(tmp_path, resumed_at=3)
    assert [row["step"] for row in read_log(path)] == ["1", "2", "3"]
    for step in (4, 5):
        again.log(_row(step, 1 / step))
    assert path.read_text() == expected
    assert len(again.rows) == 5
    Report(tmp_path)  # a run that begins
    assert path.read_text() == ",".join(COLUMNS) + "\n"


def test_a_line_that_is_torn_inside_its_last_cell_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / CSV_FILE
    path.write_text("step,loss\n1,0.5\n2,0.2")
    assert read_log(path) == [{"step": "1", "loss": "0.5"}]
    path.write_text("step,lo")
    assert read_log(path) == []
    assert read_log(tmp_path / "none") == []


def test_the_summary(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report(tmp_path)
    report.log(_row(2, 0.7, eval_loss=0.8))
    report.log(_row(4, 0.5, eval_loss=0.6))
    spent = {"train": Spent(12.5, 1.5, 4096, 2, 8, 0.4), "switch": Spent(1.0), "cached": Spent(2.0, 0.0, 512, 4, 16)}
    figures = {"loss": 0.6, "f1": math.nan, "perplexity": math.inf, "rows": 20}
    outcome = Outcome(Ending.no_gain, POSITION, figures, spent, None)  # type: ignore[arg-type]
    report.finish(summary_of(outcome, Goal("f1"), {"b": 1, "a": [2, None]}, report.rows))

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    found = json.loads((tmp_path / JSON_FILE).read_text(), parse_constant=refuse)
    assert found == {
        "ending": "no gain",
        "step": 6,
        "epoch": 2,
        "loss": 0.5,
        "final": {"loss": 0.6, "f1": None, "perplexity": None, "rows": 20},
        "best": {"metric": "f1", "score": 0.75, "step": 4},
        "phases": {
            "train": {
                "seconds": 12.5,
                "waited_s": 1.5,
                "bytes_sent": 4096,
                "updates": 2,
                "samples": 8,
                "median_s": 0.4,
            },
            "switch": {"seconds": 1.0, "waited_s": 0.0, "bytes_sent": 0, "updates": 0, "samples": 0, "median_s": 0.0},
            "cached": {
                "seconds": 2.0,
                "waited_s": 0.0,
                "bytes_sent": 512,
                "updates": 4,
                "samples": 16,
                "median_s": 0.0,
            },
        },
        "settings_fingerprint": settings_fingerprint({"a": [2, None], "b": 1}),
    }
    assert (tmp_path / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {CSV_FILE, JSON_FILE, PICTURE_FILE}


def test_a_run_that_logged_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report(tmp_path)
    outcome = Outcome(Ending.finished, Position(0, 0, 0, 0, ""), {}, {}, None)  # type: ignore[arg-type]
    report.finish(summary_of(outcome, Goal(), {}, report.rows))
    found = json.loads((tmp_path / JSON_FILE).read_text())
    assert (found["loss"], found["best"], found["final"]) == (None, None, {})
    assert (tmp_path / PICTURE_FILE).is_file()


def test_a_resumed_log_is_drawn_with_what_came_before(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    Report(tmp_path).log(_row(2, 0.7))
    report = Report(tmp_path, resumed_at=2)
    report.log(_row(4, 0.5, eval_loss=0.6))
    report.finish({})
    assert (tmp_path / PICTURE_FILE).is_file()


def test_settings_differ_where_a_value_does() -> None:
    assert settings_fingerprint({"a": 1, "b": 2}) == settings_fingerprint({"b": 2, "a": 1})
    assert settings_fingerprint({"a": 1, "b": 2}) != settings_fingerprint({"a": 1, "b": 3})


def test_strict_json_has_no_constants() -> None:
    assert json.loads(strict_json({"a": [math.nan, (math.inf, 1.5)], "b": True})) == {
        "a": [None, [None, 1.5]],
        "b": True,
    }


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for name in ("torch.utils.tensorboard", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    report = Report(tmp_path, tensorboard=True, say=said.append)
    report.log(_row(1, 0.5))
    report.finish({"step": 1})
    assert len(said) == 2
    assert "tensorboard" in said[0] and "edgempi[report]" in said[0]
    assert "matplotlib" in said[1] and "edgempi[report]" in said[1]
    assert {path.name for path in tmp_path.iterdir()} == {CSV_FILE, JSON_FILE}


def test_event_files(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report = Report(tmp_path, tensorboard=True)
    for step in range(1, 5):
        report.log(_row(step, 1 / step, **({"eval_f1": 0.5} if step == 2 else {})))
    report.finish({})
    report = Report(tmp_path, resumed_at=2, tensorboard=True)
    report.log(_row(3, 7.0))
    report.finish({})
    found = reading.EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    found.Reload()
    assert {"train/loss", "train/learning_rate", "eval/f1"} <= set(found.Tags()["scalars"])
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def _moved(step: int) -> Moved:
    return Moved(Position(step, 0, step, 0, ""), "train", 0.5, 12.0, 75.0)


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    text, now = io.StringIO(), [0.0]
    bar = Bar(10, 0, Console(file=text, width=40), clock=lambda: now[0])
    for step in range(1, 5):
        now[0] += 0.6 * EVERY_S
        bar.moved(_moved(step))
    bar.close()
    assert text.getvalue().splitlines() == [
        "edgempi: step 2 of 10, train: loss 0.5000, 12 samples/s, 0:01:15 left",
        "edgempi: step 4 of 10, train: loss 0.5000, 12 samples/s, 0:01:15 left",
    ]


def test_progress_on_a_terminal_is_a_bar() -> None:
    text = io.StringIO()
    bar = Bar(10, 3, Console(file=text, width=120, force_terminal=True))
    bar.moved(_moved(4))
    bar.close()
    assert "4/10" in text.getvalue()
    assert "12 samples/s" in text.getvalue()


def test_steps_as_they_took_and_as_planned() -> None:
    spent = {
        "setup": Spent(seconds=3.0),
        "train": Spent(2.0, updates=4, median_s=0.4),
        "cached": Spent(1.0, updates=8, median_s=0.1),
    }
    assert step_times(spent, {"train": 0.5}, accumulate=2) == {
        "train": {"measured_s": 0.2, "predicted_s": 0.5},
        "cached": {"measured_s": 0.05, "predicted_s": None},
    }


def test_one_slow_update_is_not_taken_for_all() -> None:
    now = 0.0
    ledger = Ledger(lone_world(), "train", clock=lambda: now)
    for passed in (5.0, 1.0, 1.5):
        now += passed
        ledger.trained(1, 4)
    with ledger.within("evaluate"):
        now += 7.0
    spent = ledger.together()
    assert (spent["train"].seconds, spent["train"].median_s, spent["train"].updates) == (7.5, 1.5, 3)
    assert (spent["evaluate"].seconds, spent["evaluate"].median_s) == (7.0, 0.0)
