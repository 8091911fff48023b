"""The loop: resuming, accumulating, sharing and switching change no loss; it ends and saves when it should."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgempi.comm import World, lone_world
from edgempi.errors import UserError
from edgempi.finetune.checkpoint.position import Best, Position
from edgempi.finetune.course import Calls, Course, Ending, Moved, Outcome, Phase
from edgempi.finetune.data.order import order
from edgempi.finetune.loop import train
from edgempi.finetune.optim import Method, Optimizing, Schedule, Updater
from edgempi.finetune.picked import Data
from edgempi.finetune.rhythm import Extent, Goal, Phases, Rhythm
from edgempi.plan.training.pac import Continuation
from unit.comm.threads import on_ranks
from unit.finetune.learner import Learner, data, fresh

START = Position(step=0, epoch=0, batch=0, seed=5, order="")
ADAMW = Optimizing(rate=0.05, clip=1.0, weight_decay=0.1)
SGD = Optimizing(Method.sgd, 0.1, Schedule.cosine, momentum=0.9, clip=None)
TIMED = ("samples_per_s", "train_s")


@dataclass
class Save:
    """A checkpoint."""

    position: Position
    tensors: dict[str, Tensor]
    state: dict[str, Tensor]
    best: bool


@dataclass
class Seen:
    """A run as the one who watches it sees it."""

    losses: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    entered: list[tuple[str, str | None]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    outcome: Outcome | None = None

    @property
    def told(self) -> list[dict[str, Any]]:
        """The rows of the log without what depends on the clock."""
        return [{name: value for name, value in row.items() if name not in TIMED} for row in self.rows]


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _run(
    course: Course, given: Data | None = None, start: Save | None = None, world: World | None = None, **more: Any
) -> Seen:
    """Train from the beginning, or from a checkpoint."""
    given, world, seen = given or data(), world or lone_world(), Seen()
    spoils = {name: more.pop(name, ()) for name in ("poisoned", "spoiled")}
    weights = more.pop("weights", (1.0,))
    scores = iter(more.pop("scores", []))
    seed, begun, fit = more.pop("seed", 5), more.pop("begun", None), more.pop("fit", lambda numbers: numbers)
    if start is None:
        first, state, position = fresh(), dict[str, Tensor](), START
    else:
        first = {name: tensor.clone().requires_grad_() for name, tensor in start.tensors.items()}
        state, position = start.state, start.position

    def enter(name: str, before: Phase | None, updater: Updater | None) -> Phase:
        seen.entered.append((name, None if before is None else before.name))
        if before is None or updater is None:
            tensors, kept = first, state
        else:  # new tensors, as after a redistribution
            tensors = {name: tensor.requires_grad_() for name, tensor in _copied(before.tensors).items()}
            kept = _copied(updater.state())
        seen.tensors = tensors
        learner = Learner(world, tensors, weights, **spoils)
        return Phase(name, learner, tensors, lambda epoch: order(seed, epoch, len(given.samples)), kept, fit)

    def evaluate(phase: Phase) -> dict[str, float]:
        return {"loss": next(scores, sum(float(tensor.detach().square().sum()) for tensor in phase.tensors.values()))}

    def save(phase: Phase, updater: Updater, position: Position, best: bool) -> None:
        seen.saves.append(Save(position, _copied(phase.tensors), _copied(updater.state()), best))

    calls = Calls(
        moved=lambda moved: seen.losses.append(moved.loss), evaluate=evaluate, save=save,
        log=lambda row: seen.rows.append(dict(row)),
    )  # fmt: skip
    seen.outcome = train(world, given, course, enter, replace(calls, **more), position, begun)
    return seen


def _course(given: Data, accumulate: int = 1, epochs: int = 3, **more: Any) -> Course:
    return Course(
        Extent(given.batches, epochs, accumulate, more.pop("max_steps", None)), more.pop("how", ADAMW), **more
    )


def _through_json(position: Position) -> Position:
    found = json.loads(json.dumps(asdict(position)))
    return Position(**{**found, "best": found["best"] and Best(**found["best"])})


@pytest.mark.parametrize(
    "how", [ADAMW, Optimizing(Method.sgd, 0.1, Schedule.cosine, momentum=0.9)], ids=["adamw", "sgd"]
)
@pytest.mark.parametrize("continuation", [Continuation.recompute, Continuation.redistribute])
def test_a_resumed_run_is_the_uninterrupted_one(how: Optimizing, continuation: Continuation) -> None:
    given = data()
    course = _course(
        given, accumulate=3, how=how, phases=Phases(continuation), rhythm=Rhythm(2, 3, 1), goal=Goal("loss")
    )
    whole = _run(course)
    assert len(whole.losses) == 6  # of an epoch's four mini-batches, three and one
    assert [save.position.step for save in whole.saves] == [1, 2, 3, 4, 5, 6]
    for save in whole.saves:
        step = save.position.step
        rest = _run(course, start=replace(save, position=_through_json(save.position)))
        assert rest.losses == whole.losses[step:]
        assert rest.told == [row for row in whole.told if row["step"] > step]
        assert [other.position for other in rest.saves] == [other.position for other in whole.saves[step:]]
        last = rest.saves[-1] if rest.saves else save
        assert all(torch.equal(tensor, whole.saves[-1].tensors[name]) for name, tensor in last.tensors.items())
        assert all(torch.equal(tensor, whole.saves[-1].state[name]) for name, tensor in last.state.items())


@pytest.mark.parametrize("how", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_accumulated_mini_batches_are_one_large_one(how: Optimizing) -> None:
    small, large = data(12, 2), data(12, 6)
    parts = _run(_course(small, accumulate=3, how=how), small)
    whole = _run(_course(large, how=how), large)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-12)
    for name, tensor in parts.tensors.items():
        torch.testing.assert_close(tensor, whole.tensors[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.0, 1.0)])
def test_sharing_rows_changes_no_loss(weights: tuple[float, ...]) -> None:
    course = _course(data(), accumulate=2, rhythm=Rhythm(1, None, None))
    alone = _run(course)

    def body(world: World) -> Seen:
        with torch.inference_mode(False):
            return _run(course, world=world, weights=weights)

    for found in on_ranks(len(weights), body):
        assert found.losses == pytest.approx(alone.losses, rel=1e-12)
        assert [row["grad_norm"] for row in found.rows] == pytest.approx([row["grad_norm"] for row in alone.rows])


def test_phases_are_entered_once_and_change_no_loss() -> None:
    course = _course(data(), rhythm=Rhythm(1, None, None))
    plain = _run(course)
    switched = _run(replace(course, phases=Phases(Continuation.redistribute)))
    assert plain.entered == [("train", None)]
    assert switched.entered == [("train", None), ("cached", "train")]
    assert switched.losses == plain.losses
    assert [row["phase"] for row in switched.rows] == ["train"] * 4 + ["cached"] * 8
    assert switched.outcome is not None
    spent = switched.outcome.spent
    assert list(spent) == ["setup", "train", "switch", "cached"]
    assert (spent["train"].updates, spent["train"].samples, spent["cached"].samples) == (4, 11, 22)
    assert switched.outcome.phase.name == "cached"


def test_logged_losses_are_means_over_targets() -> None:
    given = data()
    found = _run(_course(given, epochs=1, rhythm=Rhythm(3, None, None)))
    targets = [picked.targets for picked in given.picked(order(5, 0, 11))]
    assert [row["step"] for row in found.rows] == [3, 4]
    sums = [loss * count for loss, count in zip(found.losses, targets, strict=True)]
    assert found.rows[0]["loss"] == pytest.approx(sum(sums[:3]) / sum(targets[:3]), rel=1e-12)
    assert found.rows[1]["loss"] == pytest.approx(sums[3] / targets[3], rel=1e-12)
    assert [row["epoch"] for row in found.rows] == [0.75, 1.0]
    assert found.rows[0]["learning_rate"] == ADAMW.rate_at(2, 4)


def test_the_best_is_saved_and_patience_ends_the_run() -> None:
    course = _course(data(), epochs=9, rhythm=Rhythm(None, 2, 5), goal=Goal("loss", patience=2))
    found = _run(course, scores=[3.0, math.nan, 2.0, 2.5, 2.0, 1.0])
    assert found.outcome is not None
    assert found.outcome.ending is Ending.no_gain
    assert [(save.position.step, save.best) for save in found.saves] == [(2, True), (5, False), (6, True), (10, False)]
    assert found.outcome.position.best == Best(2.0, 6)
    assert found.outcome.figures == {"loss": 2.0}
    assert [row.get("eval_loss") for row in found.rows[2:]] == [2.0, 2.5, 2.0]


def test_a_loss_that_is_not_a_number_is_refused_by_every_rank() -> None:
    given = data()
    numbers = next(iter(given.picked(order(5, 0, 11), skip=2))).samples
    named = ", ".join(map(str, numbers))

    def body(world: World) -> str:
        with torch.inference_mode(False), pytest.raises(UserError) as caught:
            _run(_course(given, accumulate=2), world=world, weights=(1.0, 1.0), poisoned=(2,))
        return str(caught.value)

    for text in on_ranks(2, body):
        assert f"loss: nan at step 2, epoch 1, samples {named} (counted from 0)" in text
        assert "learning rate" in text


def test_gradients_that_are_not_finite_are_refused_before_they_do_harm() -> None:
    saves: list[dict[str, Tensor]] = []
    course = _course(data(), rhythm=Rhythm(1, None, 1))
    with pytest.raises(UserError, match="gradient norm: nan at step 3, epoch 1, samples"):
        _run(course, spoiled=(2,), save=lambda phase, updater, position, best: saves.append(dict(phase.tensors)))
    assert len(saves) == 2
    assert all(bool(tensor.isfinite().all()) for tensor in saves[-1].values())  # the tensors themselves, as they are


def test_a_run_that_is_stopped_is_saved_and_can_go_on() -> None:
    course = _course(data(), rhythm=Rhythm(10, 0, 0))
    whole = _run(course)

    def body(world: World) -> Seen:
        with torch.inference_mode(False):
            count: list[int] = []

            def stop() -> bool:
                count.append(1)
                return world.rank == 1 and len(count) == 6

            return _run(course, world=world, weights=(1.0, 0.0), stop=stop)

    for found in on_ranks(2, body):
        assert found.outcome is not None
        assert found.outcome.ending is Ending.stopped
        assert [save.position.step for save in found.saves] == [4, 6]
        rest = _run(course, start=found.saves[-1])
        assert [*found.losses, *rest.losses] == pytest.approx(whole.losses, rel=1e-12)


def test_the_time_limit_ends_with_an_update() -> None:
    found = _run(_course(data(), limit_s=0.0, rhythm=Rhythm(10, 0, 0)))
    assert found.outcome is not None
    assert found.outcome.ending is Ending.stopped
    assert [save.position.step for save in found.saves] == [row["step"] for row in found.rows] == [1]


def test_other_data_is_refused_within_an_epoch() -> None:
    course = _course(data(), rhythm=Rhythm(10, None, 3))
    save = _run(course).saves[0]
    with pytest.raises(UserError, match="same data"):
        _run(course, start=save, seed=6)


def test_an_order_that_cannot_be_made_again_can_be_given() -> None:
    course = _course(data(), rhythm=Rhythm(10, None, 3))
    orders: dict[int, np.ndarray] = {}
    whole = _run(course, began=orders.__setitem__)
    assert list(orders) == [0, 1, 2]
    save = whole.saves[1]
    assert (save.position.epoch, save.position.batch) == (1, 2)
    rest = _run(course, start=save, seed=6, begun=orders[1])
    assert rest.losses[:2] == whole.losses[6:8]  # the rest of the epoch; the next one is in an order of its own
    assert rest.losses[2:] != whole.losses[8:]
    with pytest.raises(UserError, match="same data"):
        _run(course, start=save, seed=6, begun=orders[2])


def test_an_epoch_goes_on_in_the_order_that_fits_its_phase() -> None:
    """The order of before is checked; the phase may change places within a mini-batch, and the position knows these."""
    course = _course(data(), rhythm=Rhythm(10, None, 1))
    orders: dict[int, np.ndarray] = {}
    whole = _run(course, began=orders.__setitem__)
    save, again = whole.saves[1], dict[int, np.ndarray]()
    assert (save.position.epoch, save.position.batch, save.position.phase) == (0, 2, "train")

    def turned(numbers: np.ndarray) -> np.ndarray:
        return np.concatenate([numbers[start : start + 3][::-1] for start in range(0, len(numbers), 3)])

    rest = _run(course, start=save, begun=orders[0], fit=turned, began=again.__setitem__)
    assert again[0].tolist() == turned(orders[0]).tolist()
    assert again[1].tolist() == orders[1].tolist()  # a new epoch is in the phase's own order
    assert rest.losses == pytest.approx(whole.losses[2:], rel=1e-12)
    assert rest.saves[0].position.order == data().fingerprint(turned(orders[0])) != save.position.order


def test_nobody_keeps_a_second_state_of_the_optimizer() -> None:
    course = _course(data(), rhythm=Rhythm(10, None, 3), phases=Phases(Continuation.redistribute))
    whole = _run(course)
    for found in (whole, _run(course, start=whole.saves[0])):
        assert found.outcome is not None
        assert found.outcome.phase.name == "cached"
        assert not found.outcome.phase.state


def test_a_finished_run_has_nothing_to_do() -> None:
    course = _course(data(), max_steps=5)
    found = _run(course)
    assert found.outcome is not None
    assert (found.outcome.ending, found.outcome.position.step) == (Ending.finished, 5)
    again = _run(course, start=found.saves[-1])
    assert again.losses == []
    assert again.outcome is not None and again.outcome.ending is Ending.finished


def test_time_left_counts_the_updates_still_to_come() -> None:
    moves: list[Moved] = []
    _run(_course(data(), epochs=2), moved=moves.append)
    assert [moved.position.step for moved in moves] == list(range(1, 9))
    assert moves[-1].left_s == 0
    assert all(moved.left_s > 0 and moved.samples_per_s > 0 for moved in moves[:-1])


def test_a_mini_batch_without_targets_moves_nothing_but_decay() -> None:
    given = data(4, 2)
    for sample in given.samples:
        sample.labels[:] = -100
    found = _run(_course(given, epochs=1, how=replace(ADAMW, weight_decay=0.0)), given)
    assert found.losses == [0.0, 0.0]
    assert all(torch.equal(tensor, fresh()[name]) for name, tensor in found.tensors.items())
