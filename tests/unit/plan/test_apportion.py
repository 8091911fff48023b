"""Whole-numbered shares: the rules that every count in a plan rests on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgempi.errors import UserError
from edgempi.plan.apportion import apportion, spans
from unit.plan.specs import SPEEDS

TOTALS = st.integers(0, 5000)


@given(TOTALS, SPEEDS, st.sampled_from([1, 2, 16, 64]))
def test_shares_sum_and_stay_within_one_quantum(total: int, weights: list[float], quantum: int) -> None:
    shares = apportion(total, weights, quantum)
    assert sum(shares) == total
    rest = total % quantum
    for share, weight in zip(shares, weights, strict=True):
        assert share >= 0
        assert weight or not share
        ideal = total * weight / sum(weights)
        assert abs(share - ideal) <= quantum + rest + 1e-6 * total


@given(TOTALS, SPEEDS)
def test_equal_weights_differ_by_at_most_one(total: int, weights: list[float]) -> None:
    shares = apportion(total, [1.0] * len(weights))
    assert max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True)


@given(st.integers(0, 200), SPEEDS, st.sampled_from([2, 16]))
def test_only_one_share_is_off_the_quantum(grains: int, weights: list[float], quantum: int) -> None:
    assert all(share % quantum == 0 for share in apportion(grains * quantum, weights, quantum))
    odd = [share for share in apportion(grains * quantum + 1, weights, quantum) if share % quantum]
    assert len(odd) == 1


@pytest.mark.parametrize(
    ("total", "weights", "quantum", "shares"),
    [
        (13, [3, 1, 2], 1, (7, 2, 4)),
        (7, [1, 1], 1, (4, 3)),
        (2, [1, 1, 1], 1, (1, 1, 0)),
        (5, [0, 1], 1, (0, 5)),
        (50, [1, 1], 16, (32, 18)),
        (3, [1, 0], 16, (3, 0)),
    ],
)
def test_by_hand(total: int, weights: list[float], quantum: int, shares: tuple[int, ...]) -> None:
    assert apportion(total, weights, quantum) == shares


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0]])
def test_weights_that_share_nothing(weights: list[float]) -> None:
    with pytest.raises(UserError, match="at least one is above zero"):
        apportion(5, weights)


@given(st.lists(st.integers(0, 9)))
def test_spans_follow_one_another(counts: list[int]) -> None:
    cut = spans(counts)
    assert [stop - start for start, stop in cut] == counts
    assert all(start == previous for (start, _), previous in zip(cut, [0, *(stop for _, stop in cut)], strict=False))
