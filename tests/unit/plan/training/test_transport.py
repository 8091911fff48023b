"""Transportation: all goes somewhere, and no other way gains more."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.plan.training.transport import Flow, transport


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """Up to six things of up to four kinds, for as many places."""
    count = draw(st.integers(0, 6))

    def cut(kinds: int) -> list[int]:
        stops = sorted(draw(st.lists(st.integers(0, count), min_size=kinds - 1, max_size=kinds - 1)))
        return [stop - start for start, stop in zip([0, *stops], [*stops, count], strict=True)]

    things, places = cut(draw(st.integers(1, 4))), cut(draw(st.integers(1, 3)))
    return things, places, [[draw(st.integers(0, 5)) for _ in places] for _ in things]


def _gained(flow: Flow, gain: list[list[int]]) -> int:
    return sum(n * g for row, gains in zip(flow, gain, strict=True) for n, g in zip(row, gains, strict=True))


@settings(deadline=None, max_examples=150)
@given(problems())
def test_no_other_way_gains_more(problem: tuple[list[int], list[int], list[list[int]]]) -> None:
    things, places, gain = problem
    flow = transport(things, places, gain)
    assert [sum(row) for row in flow] == things
    assert [sum(column) for column in zip(*flow, strict=True)] == places
    each = [kind for kind, count in enumerate(things) for _ in range(count)]
    wanted = [kind for kind, count in enumerate(places) for _ in range(count)]
    most = max(sum(gain[a][b] for a, b in zip(order, wanted, strict=True)) for order in set(permutations(each)))
    assert _gained(flow, gain) == most


def test_what_is_given_makes_way() -> None:
    """The first kind takes what is best for it, and has to leave it twice over."""
    assert transport([1, 1, 1], [1, 1, 1], [[9, 8, 0], [9, 0, 0], [9, 8, 5]]) == ((0, 1, 0), (1, 0, 0), (0, 0, 1))
    assert transport([500, 500], [500, 500], [[2, 1], [3, 0]]) == ((0, 500), (500, 0))


def test_as_many_places_as_things() -> None:
    with pytest.raises(ValueError, match="3 things for 2 places"):
        transport([3], [2], [[1]])
