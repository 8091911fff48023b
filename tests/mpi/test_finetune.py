"""Fine-tuning under mpirun, from rows to files: every system has the losses of one device, cached and resumed too."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgempi.comm import lone_world
from edgempi.config.frozen import freeze
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.finetune.cache.found import Budget
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.export import read_own
from edgempi.plan.memory import RUNTIME_BYTES
from edgempi.tasks.finetune import prepare, report
from edgempi.tasks.finetune_run import train_together
from models.worded import build_worded
from mpi.finetune import ROWS, job
from mpi.launch import Ended, run_ranks

pytestmark = pytest.mark.mpi

SYSTEMS = ("eddl", "ecofl", "asteroid", "pac")
WHOLE: dict[str, Any] = {"batch": ROWS, "epochs": 5}
"""One mini-batch is all rows: who has cached which then makes no difference to its loss."""
TIGHT_BYTES = {"bert": 350_000, "llama": 400_000, "t5": 600_000}
"""Beside libraries: a budget that holds the side network of all layers, and the backbone of some."""
CACHED = ("in_place", True), ("redistribute", True), ("redistribute", False)
"""What later epochs do, and whether the run evaluates."""


@pytest.fixture(scope="module", params=TIGHT_BYTES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    build_worded(request.param, folder)
    return folder


def _alone(config: Config) -> dict[str, Any]:
    return train_together(config, prepare(config), lone_world())


def _started(configs: list[Config], tmp_path: Path, *words: str) -> Ended:
    """On two ranks."""
    files = []
    for number, config in enumerate(configs):
        file = tmp_path / f"job{number}.yaml"
        file.write_text(freeze(config, prepare(config)), encoding="utf-8")
        files.append(str(file))
    return run_ranks(2, "mpi.ranks_finetune", [str(tmp_path / "result.json"), *words, *files], 120)


def _together(configs: list[Config], tmp_path: Path) -> list[dict[str, Any]]:
    ended = _started(configs, tmp_path)
    assert ended.status == 0, ended.err
    found: list[dict[str, Any]] = json.loads((tmp_path / "result.json").read_text())
    return found


def test_systems_have_the_losses_of_one_device(model: Path, tmp_path: Path) -> None:
    alone = _alone(job(model, tmp_path / "alone", "standalone", 1))
    whole = _alone(job(model, tmp_path / "whole", "standalone", 1, **WHOLE))
    tight = next(nbytes for name, nbytes in TIGHT_BYTES.items() if name in model.name) + RUNTIME_BYTES
    jobs = [job(model, tmp_path / system, system, 2) for system in SYSTEMS]
    for number, (after, evaluates) in enumerate(CACHED):
        folder = tmp_path / f"cached{number}" / "run"
        more = WHOLE | {"cached": True, "after": after, "evaluates": evaluates, "budget_bytes": tight}
        jobs.append(job(model, folder, "pac", 2, **more))
    *together, stopped = _together([*jobs, job(model, tmp_path / "stopped", "pac", 2, max_steps=4)], tmp_path)
    for found in together[: len(SYSTEMS)]:
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["final"]["loss"] == pytest.approx(alone["final"]["loss"], rel=1e-5)
    for found, (after, _) in zip(together[len(SYSTEMS) :], CACHED, strict=True):
        assert found["phases"]["cached"]["updates"] == 4
        assert (sum(rank["moved"]["sent"] for rank in found["ranks"]) > 0) == (after == "redistribute")
        assert found["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert stopped["losses"] == pytest.approx(alone["losses"][:4], rel=1e-5)

    resumed = _alone(job(model, tmp_path / "stopped", "standalone", 1, resume=True))
    assert resumed["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    ours, theirs = (read_own(tmp_path / name / "trained").state for name in ("alone", "stopped"))
    assert all((x - theirs[name]).abs().max() < 1e-4 for name, x in ours.items())


def test_a_cache_that_is_there_is_read(model: Path, tmp_path: Path) -> None:
    plain = _alone(job(model, tmp_path / "plain", "standalone", 1))
    first, again = (_alone(job(model, tmp_path / name, "standalone", 1, cached=True)) for name in ("first", "again"))
    assert (first["phases"]["train"]["updates"], first["phases"]["cached"]["updates"]) == (3, 6)
    assert again["phases"]["cached"]["updates"] == 9
    assert "train" not in again["phases"]
    config = job(model, tmp_path / "roomless", "standalone", 1, cached=True)
    roomless = _alone(replace(config, cache=replace(config.cache, disk_bytes=0, folder=str(tmp_path / "none"))))
    console = Console(file=io.StringIO(), width=200)
    report(roomless, console)
    assert f"no room for {ROWS} samples: the backbone ran in every epoch" in console.file.getvalue()  # type: ignore[attr-defined]
    for found in (first, again, roomless):
        assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
        assert found["final"] == pytest.approx(plain["final"], rel=1e-5)


@pytest.mark.parametrize(("epoch", "step"), [(1, 3), (3, 8)])
def test_a_rank_is_killed_and_the_other_goes_on(epoch: int, step: int, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    build_worded("t5", model)

    def made(name: str, ranks: int, **more: Any) -> Config:
        folder = tmp_path / name / "run"
        config = job(model, folder, "eddl", ranks, cached=True, after="in_place", evaluates=False, **more)
        return replace(config, evaluation=replace(config.evaluation, save_every_steps=1))

    # A lone device shuffles freely after the first epoch; in the third one the order of both goes on.
    undisturbed = _alone(made("alone", 1)) if epoch == 1 else _together([made("undisturbed", 2)], tmp_path)[0]
    assert _started([made("killed", 2)], tmp_path, f"kill=1:{step}").status not in (0, None)
    held = _cached(tmp_path / "killed" / "cache" / "device0")
    assert 0 < held < ROWS
    resumed = _alone(made("killed", 1, resume=True))
    assert resumed["began_at"] == step - 1
    # What the backbone was run for is what nobody had.
    assert resumed["ranks"][0]["cache"]["stored"] == ROWS - held
    least = 1 if epoch == 1 else ROWS - held  # in the first one, what had not been seen is run anyway
    assert least <= resumed["refilled_rows"] <= ROWS - held
    assert resumed["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
    console = Console(file=io.StringIO(), width=200)
    report(resumed, console)
    assert f"apart for {resumed['refilled_rows']} samples" in console.file.getvalue()  # type: ignore[attr-defined]


def test_other_rows_are_not_gone_on_with(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    build_worded("bert", model)
    _alone(job(model, tmp_path / "run", "standalone", 1, max_steps=2))
    config = job(model, tmp_path / "run", "standalone", 1, resume=True)
    fewer = replace(config, finetune_data=replace(config.finetune_data, generated_rows=ROWS - 3))
    with pytest.raises(UserError, match=rf"rows {ROWS} \(here {ROWS - 3}\), content of the rows"):
        _alone(fewer)
    with pytest.raises(UserError, match=r"optimizer.rate 0\.02 \(here 0\.03\)"):
        _alone(replace(config, optimizer=replace(config.optimizer, rate=0.03)))


def _cached(folder: Path) -> int:
    """How many samples a device has all layers of."""
    (file,) = folder.glob("*/key.json")
    about = json.loads(file.read_text())
    about.pop("format")
    key = CacheKey(**{name: tuple(value) if isinstance(value, list) else value for name, value in about.items()})
    with ActivationCache(folder, key, Budget()) as store:
        return len(store.samples()) - len(store.missing(store.samples()))
