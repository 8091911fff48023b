"""What is due, what is best, when it ends, how long it still takes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edgempi.errors import UserError
from edgempi.finetune.checkpoint.position import Best, Position
from edgempi.finetune.rhythm import CACHED, TRAIN, Due, Extent, Goal, Phases, Rhythm, left_s
from edgempi.plan.training.pac import Continuation

START = Position(step=0, epoch=0, batch=0, seed=0, order="")


def _walk(extent: Extent) -> list[Position]:
    position, found = START, []
    while position.step < extent.steps:
        position = extent.after(position)
        found.append(position)
    return found


def test_the_last_update_of_an_epoch_takes_what_is_left() -> None:
    extent = Extent(batches=5, epochs=2, accumulate=2)
    assert extent.steps == 6
    assert [(p.step, p.epoch, p.batch) for p in _walk(extent)] == [
        (1, 0, 2), (2, 0, 4), (3, 1, 0), (4, 1, 2), (5, 1, 4), (6, 2, 0),
    ]  # fmt: skip
    assert [extent.group(p) for p in [START, *_walk(extent)][:4]] == [2, 2, 1, 2]
    assert extent.epochs_done(_walk(extent)[3]) == 1.4


def test_a_bound_on_updates_ends_within_an_epoch() -> None:
    assert _walk(Extent(5, 2, 2, max_steps=4))[-1] == replace(START, step=4, epoch=1, batch=2)
    assert Extent(5, 2, 2, max_steps=40).steps == 6


def test_updates_left_by_phase() -> None:
    extent, phases = Extent(4, 3, 3), Phases(Continuation.in_place)
    assert extent.steps_left(START, phases) == {TRAIN: 2, CACHED: 4}
    assert extent.steps_left(replace(START, step=3, epoch=1, batch=3), phases) == {CACHED: 3}
    assert Extent(4, 3, 3, 3).steps_left(START, phases) == {TRAIN: 2, CACHED: 1}
    assert extent.steps_left(START, Phases()) == {TRAIN: 6}
    assert extent.steps_left(replace(START, step=6, epoch=3), phases) == {}


def test_phases_of_epochs() -> None:
    assert [Phases(Continuation.redistribute).of(epoch) for epoch in range(3)] == [TRAIN, CACHED, CACHED]
    assert [Phases(Continuation.in_place, filling=0).of(epoch) for epoch in range(2)] == [CACHED, CACHED]
    assert [Phases(Continuation.recompute).of(epoch) for epoch in range(2)] == [TRAIN, TRAIN]


def test_what_is_due() -> None:
    rhythm = Rhythm(log_every=2, evaluate_every=3, save_every=0)
    found = [rhythm.due(position, last=False) for position in _walk(Extent(4, 2))]
    assert [step + 1 for step, due in enumerate(found) if due.log] == [2, 3, 4, 6, 8]
    assert [step + 1 for step, due in enumerate(found) if due.evaluate] == [3, 6]
    assert [step + 1 for step, due in enumerate(found) if due.save] == [4, 8]
    middle = replace(START, step=1, batch=1)
    assert rhythm.due(middle, last=True) == Due(True, True, True)
    assert Rhythm(None, None, None).due(replace(START, step=4, epoch=1), last=True) == Due(False, False, False)


def test_the_best_is_the_largest_or_the_smallest() -> None:
    def bests(goal: Goal, name: str, scores: list[float]) -> tuple[list[bool], Best | None, int]:
        position, found = START, []
        for step, score in enumerate(scores):
            position, best = goal.judged(replace(position, step=step), {name: score, "other": 0.0})
            found.append(best)
        return found, position.best, position.stale

    assert bests(Goal("f1"), "f1", [0.5, 0.5, 0.7, 0.6]) == ([True, False, True, False], Best(0.7, 2), 1)
    assert bests(Goal("loss"), "loss", [0.5, 0.6, 0.4]) == ([True, False, True], Best(0.4, 2), 0)
    assert bests(Goal("loss"), "loss", [math.nan, 0.6, math.nan]) == ([False, True, False], Best(0.6, 1), 1)
    # A better one that is no gain is the best, but patience goes on running out.
    assert bests(Goal("f1", gain=0.1), "f1", [0.5, 0.55, 0.58, 0.7]) == ([True] * 4, Best(0.7, 3), 0)
    assert bests(Goal("f1", gain=0.1), "f1", [0.5, 0.55, 0.58]) == ([True] * 3, Best(0.58, 2), 2)


def test_patience() -> None:
    assert not Goal("loss").is_hopeless(replace(START, stale=99))
    assert [Goal("loss", patience=2).is_hopeless(replace(START, stale=stale)) for stale in (1, 2)] == [False, True]


def test_a_metric_that_is_not_measured() -> None:
    with pytest.raises(UserError, match="accuracy, loss"):
        Goal("f1").judged(START, {"loss": 1.0, "accuracy": 0.5})


def test_time_left() -> None:
    steps = {TRAIN: 2, CACHED: 10}
    assert left_s(steps, {TRAIN: 3.0}, {}, TRAIN) == 36.0
    # Half again as slow as planned: what was not seen yet will be too.
    assert left_s(steps, {TRAIN: 3.0}, {TRAIN: 2.0, CACHED: 0.5}, TRAIN) == pytest.approx(2 * 3 + 10 * 0.75)
    assert left_s({CACHED: 10}, {TRAIN: 3.0, CACHED: 0.6}, {TRAIN: 2.0, CACHED: 0.5}, CACHED) == pytest.approx(6.0)
    assert left_s({}, {TRAIN: 3.0}, {}, TRAIN) == 0


@pytest.mark.parametrize("wrong", ["batches", "epochs", "accumulate", "max_steps"])
def test_extents_out_of_range(wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        Extent(**{"batches": 4, wrong: 0})


def test_settings_out_of_range() -> None:
    with pytest.raises(UserError, match="log_every"):
        Rhythm(log_every=-1)
    with pytest.raises(UserError, match="patience"):
        Goal("loss", patience=0)
    with pytest.raises(UserError, match="gain"):
        Goal("loss", gain=-0.1)
