"""Redistribution: every element that a device needs arrives once, from one that has it."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgempi.plan.apportion import apportion, spans
from edgempi.plan.layout import Layout, Region, moves

ROWS, TOKENS, COLUMNS = 4, 7, 5
WHOLE = Region((0, ROWS), (0, TOKENS), (0, COLUMNS))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A tensor replicated, or cut along one dimension, over devices in any order."""
    devices = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True))
    cut = draw(st.sampled_from(["nothing", "rows", "tokens", "columns"]))
    if cut == "nothing":
        return dict.fromkeys(devices, WHOLE)
    weights = draw(st.lists(st.integers(0, 3), min_size=len(devices), max_size=len(devices)).filter(any))
    total = {"rows": ROWS, "tokens": TOKENS, "columns": COLUMNS}[cut]
    whole = {"rows": WHOLE.rows, "tokens": WHOLE.tokens, "columns": WHOLE.columns}
    cuts = spans(apportion(total, weights))
    return {device: Region(**{**whole, cut: span}) for device, span in zip(devices, cuts, strict=True)}


@given(layouts(), layouts())
def test_every_element_arrives_once(source: Layout, target: Layout) -> None:
    tensor = np.arange(ROWS * TOKENS * COLUMNS).reshape(ROWS, TOKENS, COLUMNS)
    held = {device: tensor[box.within(WHOLE)] for device, box in source.items()}
    got = {device: np.full(box.shape, -1) for device, box in target.items()}
    times = {device: np.zeros(box.shape, int) for device, box in target.items()}
    for move in moves(source, target):
        part = held[move.source][move.region.within(source[move.source])]
        assert part.shape == move.region.shape
        assert part.size
        got[move.target][move.region.within(target[move.target])] = part
        times[move.target][move.region.within(target[move.target])] += 1
    for device, box in target.items():
        assert np.array_equal(got[device], tensor[box.within(WHOLE)])
        assert (times[device] == 1).all()


@given(layouts())
def test_what_is_in_place_does_not_travel(layout: Layout) -> None:
    assert all(move.source == move.target for move in moves(layout, layout))


def test_replicas_take_turns() -> None:
    sent = moves(dict.fromkeys((0, 1), WHOLE), dict.fromkeys((2, 3, 4, 5), WHOLE))
    assert [(move.source, move.target) for move in sent] == [(0, 2), (1, 3), (0, 4), (1, 5)]


def test_regions() -> None:
    box = Region((1, 3), (2, 7), (0, 5))
    assert (box.shape, box.empty) == ((2, 5, 5), False)
    assert Region((1, 1), (0, 2), (0, 2)).empty
    apart = Region((3, 4), (0, 2), (0, 5))
    assert box.meet(apart).empty
    for a, b in product((box, apart, WHOLE), repeat=2):
        assert a.meet(b) == b.meet(a) or a.meet(b).empty
