"""Orders of cached epochs: every sample once, each with a device that keeps it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgempi.finetune.data.order import order
from edgempi.finetune.orders import cached_order, places_of, read_order, write_order
from edgempi.finetune.redistribute import shift
from edgempi.plan.plan import Plan
from unit.finetune.toys import SIDE, costs, plan, spec

MODEL = spec(2, 2)
COSTS = costs(MODEL, SIDE, 4)
SIZE, COUNT = 5, 23
HYBRID = plan(MODEL, [(2, [0, 1], [3, 1]), (2, [2, 3], [1, 2])], 2)
SHARED = plan(MODEL, [(4, [0, 1, 2, 3], [2, 1, 1, 1])], 1)
ALONE = plan(MODEL, [(4, [0], [])], 1)
PIPE = plan(MODEL, [(2, [0], []), (2, [1], [])], 2)
CASES = {"to data parallel": (HYBRID, SHARED), "in place": (HYBRID, HYBRID), "data parallel": (SHARED, SHARED)}


def _places(made: Plan) -> list[tuple[int, ...]]:
    """Who works on each place of an epoch."""
    return [keeper for rows in (*[SIZE] * (COUNT // SIZE), COUNT % SIZE) for keeper in places_of(made, COSTS, rows)]


@pytest.mark.parametrize("case", CASES)
def test_samples_stay_where_they_are_kept(case: str) -> None:
    first, second = CASES[case]
    keepers = []
    for epoch in (1, 2, 5):
        found = cached_order(7, epoch, COUNT, SIZE, first, second, COSTS)
        assert found.dtype == np.int64
        assert sorted(found) == list(range(COUNT))
        keepers.append(dict(zip(found.tolist(), _places(second), strict=True)))
    assert keepers[0] == keepers[1] == keepers[2]
    assert Counter(keepers[0].values()) == Counter(_places(second))


@pytest.mark.parametrize("case", CASES)
def test_devices_see_the_samples_that_are_moved_to_them(case: str) -> None:
    first, second = CASES[case]
    numbers = order(7, 0, COUNT).tolist()
    moved = shift(first, second, COSTS, (), [numbers[start : start + SIZE] for start in range(0, COUNT, SIZE)])
    found = cached_order(7, 4, COUNT, SIZE, first, second, COSTS).tolist()
    for device in range(4):
        seen = {number for number, keeper in zip(found, _places(second), strict=True) if device in keeper}
        assert seen == set(moved.samples[device])


def test_what_did_not_need_to_move_did_not() -> None:
    """Without a change of plan, who had a sample in the first epoch keeps it."""
    had = dict(zip(order(7, 0, COUNT).tolist(), _places(SHARED), strict=True))
    found = cached_order(7, 3, COUNT, SIZE, SHARED, SHARED, COSTS)
    assert dict(zip(found.tolist(), _places(SHARED), strict=True)) == had


@pytest.mark.parametrize("made", [ALONE, PIPE], ids=["one device", "one device a stage"])
def test_where_all_samples_are_in_one_place_the_order_is_free(made: Plan) -> None:
    for epoch in (1, 2):
        assert (cached_order(7, epoch, COUNT, SIZE, made, made, COSTS) == order(7, epoch, COUNT)).all()


def test_an_order_is_written_down(tmp_path: Path) -> None:
    numbers = order(3, 1, 11)
    write_order(tmp_path / "order", numbers)
    assert (read_order(tmp_path / "order") == numbers).all()
