"""The loop over the real executor and models, on one rank: a plain loop's losses, resumed from files too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgempi.comm import lone_world
from edgempi.finetune.checkpoint import (
    Checkpoints,
    Identity,
    Position,
    load_optimizer,
    load_trained,
    optimizer_names,
)
from edgempi.finetune.course import Calls, Course, Phase
from edgempi.finetune.data.order import order
from edgempi.finetune.evaluate import classes, evaluate, tokens
from edgempi.finetune.executor import Executor
from edgempi.finetune.loop import train
from edgempi.finetune.metrics import Confusion, ExactMatch
from edgempi.finetune.optim import Optimizing, Updater
from edgempi.finetune.picked import Data
from edgempi.finetune.report import CSV_FILE, Report, read_log, summary_of
from edgempi.finetune.rhythm import Extent, Goal, Rhythm
from edgempi.finetune.trunk import Trunk
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.workload import Workload
from models.zoo import PAD
from unit.finetune.tuned import made, samples, trunk

CASES = {"bert-classifier": ("classes", 3), "t5": ("tokens", None), "llama": ("tokens", None)}
HOW = Optimizing(rate=0.01, warm_up=2, clip=0.5)
EXTENT = Extent(batches=3, epochs=2, accumulate=2)
START = Position(step=0, epoch=0, batch=0, seed=2, order="")


def _order(epoch: int) -> np.ndarray:
    return order(START.seed, epoch, 8)


def _executor(ours: Trunk) -> Executor:
    spec, tuning = ours.spec, ours.tuning
    plan = Plan((Stage(spec.units, (0,), PRESETS["single"]),), microbatches=2)
    costs = Costs(pieces(spec), layer_bytes(spec, tuning, Workload(1, 9, 9)), (), optimizer_copies=2)
    return Executor(lone_world(), plan, costs, ours, (1,), 3)


def _train(ours: Trunk, given: Data, folder: Path, position: Position, state: Mapping[str, Any]) -> list[float]:
    """Losses of all updates from a position on; checkpoints and the log go to the folder."""
    world, losses = lone_world(), list[float]()
    report = Report(folder, resumed_at=position.step or None)
    checkpoints = Checkpoints(folder / "checkpoints", _identity(ours), keep_last=9)
    course = Course(EXTENT, HOW, rhythm=Rhythm(1, 2, 1), goal=Goal("loss"))

    def enter(name: str, before: Phase | None, updater: Updater | None) -> Phase:
        return Phase(name, _executor(ours), ours.trained.tensors, _order, state)

    def figures(phase: Phase) -> dict[str, float]:
        assert isinstance(phase.executor, Executor)
        if given.samples[0].labels.ndim:
            return evaluate(world, phase.executor, given, tokens, ExactMatch)
        return evaluate(world, phase.executor, given, classes, partial(Confusion, 3))

    def save(phase: Phase, updater: Updater, position: Position, best: bool) -> None:
        checkpoints.save(position, ours.trained.state(), updater.state())

    calls = Calls(moved=lambda moved: losses.append(moved.loss), evaluate=figures, log=report.log, save=save)
    outcome = train(world, given, course, enter, calls, position)
    report.finish(summary_of(outcome, course.goal, {}, report.rows))
    return losses


def _log(run: Path) -> list[dict[str, str]]:
    """The rows without what depends on the clock."""
    timed = ("samples_per_s", "train_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_log(run / CSV_FILE)]


def _identity(ours: Trunk) -> Identity:
    return Identity.of("model", ours.spec, ours.tuning, "adamw")


def _plain(ours: Trunk, given: Data) -> list[float]:
    """The same with torch and transformers alone."""
    from transformers import get_linear_schedule_with_warmup

    parameters = list(ours.trained.tensors.values())
    optimizer = torch.optim.AdamW(parameters, lr=HOW.rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, EXTENT.steps)
    losses = []
    for epoch in range(EXTENT.epochs):
        numbers = _order(epoch)
        for part in (numbers[:6], numbers[6:]):
            (whole,) = Data(given.samples, len(part), PAD).picked(part)
            loss = ours.forward(whole.rows_of((0, whole.rows)), {}).total / whole.targets  # type: ignore[union-attr]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, HOW.clip or 0.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("technique", ["full", "lora", "parallel_adapter"])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_a_plain_loop_and_of_a_resumed_one(name: str, technique: str, tmp_path: Path) -> None:
    labels, rows = CASES[name]
    _, spec = made(name, tmp_path)
    make = partial(trunk, tmp_path, spec, technique, labels=rows, seed=1)
    ours = make()
    given = Data(samples(ours.spec, 8, labels), 3, PAD)
    run = tmp_path / "run"
    run.mkdir()
    losses = _train(ours, given, run, START, {})
    assert losses == pytest.approx(_plain(make(), given), rel=1e-8)
    log = _log(run)
    assert [float(row["loss"]) for row in log] == losses
    assert [row["step"] for row in log if "eval_loss" in row] == ["2", "4"]

    checkpoints = Checkpoints(run / "checkpoints", _identity(ours))
    assert checkpoints.steps == (1, 2, 3, 4)
    for folder in (run / "checkpoints" / "checkpoint-4", run / "checkpoints" / "checkpoint-3"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    found = checkpoints.newest()
    assert found is not None
    again = make()
    names = list(again.trained.tensors)
    again.trained.load(load_trained(found.folder, names))
    state = load_optimizer(found.folder, optimizer_names(names, HOW.kinds))
    assert _train(again, given, run, found.position, state) == losses[2:]
    ends = ours.trained.state()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in again.trained.state().items())
    assert _log(run) == log
