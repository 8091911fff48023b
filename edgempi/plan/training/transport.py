"""The transportation problem: from kinds of things to kinds of places, so that the sum of gains is largest.

Source: successive augmenting paths of largest gain in the residual network (Edmonds and Karp, J. ACM 19, 1972), with
things and places taken together by kind, so that the work grows with the kinds and not with their members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

Flow = tuple[tuple[int, ...], ...]
"""A row for each kind of things: how many of them go to each kind of places."""


def transport(things: Sequence[int], places: Sequence[int], gain: Sequence[Sequence[int]]) -> Flow:
    """How many of each kind of things go to each kind of places.

    Args:
        things: how many there are of each kind.
        places: how many things each kind takes; as many as there are things in all.
        gain: of one thing at one place, by kind of things, then of places; exact, since they are whole numbers.
    """
    if sum(things) != sum(places):
        raise ValueError(f"{sum(things)} things for {sum(places)} places")
    free = list(places)
    given: list[dict[int, int]] = [{} for _ in places]
    for kind, left in enumerate(things):
        while left:
            path = _best_path(kind, gain, given, free)
            # Who enters a place of the path makes room in the one before.
            leaving = [(start, mover) for (start, _), (_, mover) in pairwise(path)]
            last = path[-1][0]
            amount = min(left, free[last], *(given[start][mover] for start, mover in leaving))
            for start, mover in leaving:
                given[start][mover] -= amount
                if not given[start][mover]:
                    del given[start][mover]
            for end, mover in path:
                given[end][mover] = given[end].get(mover, 0) + amount
            free[last] -= amount
            left -= amount
    return tuple(tuple(flow.get(kind, 0) for flow in given) for kind in range(len(things)))


def _best_path(
    kind: int, gain: Sequence[Sequence[int]], given: Sequence[Mapping[int, int]], free: Sequence[int]
) -> list[tuple[int, int]]:
    """Places to be entered one after another, each with the kind that enters it; the last one has room.

    What is given already is best for itself, so that no cycle gains anything, and paths are simple.
    """
    count = len(free)
    ways: dict[tuple[int, int], tuple[int, int]] = {}
    for start, held in enumerate(given):
        for end in range(count):
            if held and end != start:
                more, mover = max((gain[one][end] - gain[one][start], -one) for one in held)
                ways[start, end] = more, -mover
    best = list(gain[kind])
    before: list[tuple[int, int] | None] = [None] * count
    for _ in range(count):
        changed = False
        for (start, end), (more, mover) in ways.items():
            if best[start] + more > best[end]:
                best[end], before[end], changed = best[start] + more, (start, mover), True
        if not changed:
            break
    place = max((place for place in range(count) if free[place]), key=lambda place: (best[place], -place))
    path: list[tuple[int, int]] = []
    while (came := before[place]) is not None:
        path.append((place, came[1]))
        place = came[0]
    return [(place, kind), *reversed(path)]
