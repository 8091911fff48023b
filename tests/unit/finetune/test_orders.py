"""Orders of cached epochs: every sample once, each with a device that keeps it, whoever filled the cache."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from edgempi.finetune.data.order import order
from edgempi.finetune.orders import Homes, homes_of
from edgempi.finetune.redistribute import shift
from edgempi.plan.plan import Plan
from edgempi.plan.training import redistribute as redistribute_module
from edgempi.plan.training.redistribute import Holding, Keeper, filled, keepers, redistribute
from unit.finetune.toys import SIDE, costs, plan, spec

MODEL = spec(2, 2)
COSTS = costs(MODEL, SIDE, 4)
SIZE, COUNT = 5, 23
HYBRID = plan(MODEL, [(2, [0, 1], [3, 1]), (2, [2, 3], [1, 2])], 2)
SHARED = plan(MODEL, [(4, [0, 1, 2, 3], [2, 1, 1, 1])], 1)
ALONE = plan(MODEL, [(4, [0], [])], 1)
PIPE = plan(MODEL, [(2, [0], []), (2, [1], [])], 2)
CASES = {"to data parallel": (HYBRID, SHARED), "in place": (HYBRID, HYBRID), "data parallel": (SHARED, SHARED)}


def _batches(numbers: np.ndarray) -> list[list[int]]:
    return [numbers[start : start + SIZE].tolist() for start in range(0, COUNT, SIZE)]


def _held(made: Plan, numbers: np.ndarray) -> list[Holding]:
    """Who has what after an epoch in some order."""
    found: list[Holding] = [()] * COUNT
    for batch in _batches(numbers):
        for number, holding in zip(batch, filled(made, COSTS, len(batch)), strict=True):
            found[number] = holding
    return found


def _places(made: Plan) -> list[Keeper]:
    """Who works on each place of an epoch."""
    return [keeper for batch in _batches(np.arange(COUNT)) for keeper in keepers(made, COSTS, len(batch))]


def _homes(first: Plan, second: Plan) -> Homes:
    """After the first epoch."""
    return homes_of(_held(first, order(7, 0, COUNT)), second, COSTS, SIZE, order(7, 0, COUNT))


@pytest.mark.parametrize("case", CASES)
def test_samples_stay_where_they_are_kept(case: str) -> None:
    homes = _homes(*CASES[case])
    for epoch in (1, 2, 5):
        found = homes.order(7, epoch)
        assert found.dtype == np.int64
        assert sorted(found) == list(range(COUNT))
        assert [homes.keepers[number] for number in found] == _places(CASES[case][1])
    assert (homes.order(7, 1) != homes.order(7, 2)).any()


@pytest.mark.parametrize("case", CASES)
def test_what_moves_is_what_the_planner_reckons_with(case: str) -> None:
    first, second = CASES[case]
    held, homes = _held(first, order(7, 0, COUNT)), _homes(first, second)
    found = shift(held, homes.keepers, second, COSTS, MODEL.units, range(COUNT))
    batches = _batches(order(7, 0, COUNT))
    moves = [move for batch in batches for move in redistribute(first, second, COSTS, len(batch)).cache]
    assert found.nbytes == sum(move.nbytes for move in moves)
    for device in range(4):
        assert set(found.samples[device]) == {n for n, keeper in enumerate(homes.keepers) if device in keeper}


def test_homes_are_found_again_from_who_has_what() -> None:
    """After the move, without a word of how the cache was filled: so it does not matter how often a run is resumed."""
    homes = _homes(HYBRID, SHARED)
    every = (1 << COSTS.size) - 1
    assert homes_of([((keeper[0], every),) for keeper in homes.keepers], SHARED, COSTS, SIZE) == homes
    # One device lost its part: what it had goes back to it, since the others have theirs.
    left: list[Holding] = [() if keeper == (2,) else ((keeper[0], every),) for keeper in homes.keepers]
    assert homes_of(left, SHARED, COSTS, SIZE) == homes


def test_what_did_not_need_to_move_did_not() -> None:
    """Without a change of plan, who had a sample in the first epoch keeps it."""
    had = dict(zip(order(7, 0, COUNT).tolist(), _places(SHARED), strict=True))
    assert dict(enumerate(_homes(SHARED, SHARED).keepers)) == had


@pytest.mark.parametrize("made", [ALONE, PIPE], ids=["one device", "one device a stage"])
def test_where_all_samples_are_in_one_place_the_order_is_free(made: Plan) -> None:
    for epoch in (1, 2):
        assert (_homes(made, made).order(7, epoch) == order(7, epoch, COUNT)).all()


@pytest.mark.parametrize("second", [HYBRID, SHARED, ALONE], ids=["pipeline", "data parallel", "one device"])
def test_an_epoch_is_gone_on_with_by_other_devices(second: Plan) -> None:
    """Mini-batches stay what they are; within them rows change places."""
    begun = _homes(HYBRID, SHARED).order(7, 1)
    random = Random(0)
    held = [tuple((d, random.randrange(1, 16)) for d in range(3) if random.random() < 0.5) for _ in range(COUNT)]
    homes = homes_of(held, second, COSTS, SIZE, begun)
    found = homes.fitted(begun)
    assert [sorted(batch) for batch in _batches(found)] == [sorted(batch) for batch in _batches(begun)]
    assert [homes.keepers[number] for number in found] == _places(second)
    assert (homes.fitted(found) == found).all()


def test_mini_batches_alike_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    wanted = redistribute_module.transport

    def counted(things: Sequence[int], places: Sequence[int], gain: Sequence[Sequence[int]]) -> object:
        calls.append(sum(things))
        return wanted(things, places, gain)

    monkeypatch.setattr(redistribute_module, "transport", counted)
    _homes(HYBRID, SHARED).order(7, 1)
    assert calls == [SIZE, COUNT % SIZE]
