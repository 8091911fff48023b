"""Exact shares against all shares there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.plan.balance import Cost, balance

COSTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0.1, 10), st.integers(0, 9)), min_size=1, max_size=3
)


@settings(deadline=None)
@given(st.integers(0, 9), COSTS)
def test_no_other_shares_are_faster(total: int, drawn: list[tuple[float, float, int]]) -> None:
    costs, most = [Cost(fixed, each) for fixed, each, _ in drawn], [cap for *_, cap in drawn]
    fitting = [n for n in product(*(range(cap + 1) for cap in most)) if sum(n) == total]

    def slowest(counts: tuple[int, ...]) -> float:
        return max(cost.seconds(count) for cost, count in zip(costs, counts, strict=True))

    found = balance(total, costs, most)
    if not fitting:
        assert found is None
    else:
        assert found in fitting
        assert slowest(found) == pytest.approx(min(map(slowest, fitting)))


def test_memory_binds_the_fastest() -> None:
    assert balance(10, [Cost(0.0, 1.0), Cost(0.0, 4.0)], [10, 10]) == (8, 2)
    assert balance(10, [Cost(0.0, 1.0), Cost(0.0, 4.0)], [5, 10]) == (5, 5)
