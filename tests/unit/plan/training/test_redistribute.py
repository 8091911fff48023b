"""Redistribution: everything arrives once, and in the even case (P - 1) / P of the cache moves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import (
    Holding,
    aligned,
    cache_moves,
    filled,
    keepers,
    lost,
    owners,
    pinned_order,
    reads,
    redistribute,
)
from edgempi.plan.training.sizes import LayerBytes
from unit.plan.training.workloads import costs, even_costs, plan

SIZE = LayerBytes(trained=40, tables={"relative": 7}, trains_tables=frozenset({"relative"}), cache=10)


def _hybrid(c: Costs, stages: int, devices: int, microbatches: int) -> Plan:
    layers, group = c.size // stages, devices // stages
    return plan(
        c,
        [((s * layers, (s + 1) * layers), range(s * group, (s + 1) * group), [1] * group) for s in range(stages)],
        microbatches,
    )


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize(("stages", "devices"), [(1, 4), (2, 4), (4, 4), (2, 8), (4, 8)])
def test_the_even_case(stages: int, devices: int, microbatches: int) -> None:
    c, rows = even_costs(devices, 8, size=SIZE, copies=2), 16
    first = _hybrid(c, stages, devices, microbatches)
    second = plan(c, [((0, 8), range(devices), [1] * devices)], 1)
    found = redistribute(first, second, c, rows)
    whole = rows * 8 * 10
    assert sum(move.nbytes for move in found.cache) * stages == whole * (stages - 1)
    lacks = 8 * 40 * (stages - 1) // stages  # the shared table is everywhere
    assert sum(move.nbytes for move in found.parameters) == devices * lacks * 3


@st.composite
def changes(draw: st.DrawFn) -> tuple[Costs, Plan, Plan, int]:
    """Two plans of one model over some of the same devices."""
    layers = draw(st.integers(1, 6))
    sizes = [LayerBytes(trained=draw(st.integers(0, 9)), cache=draw(st.integers(1, 9))) for _ in range(layers)]
    c = costs([[(0.0, 1.0)] * layers] * 6, [[(0.0, 1.0)] * layers] * 6, sizes)

    def drawn() -> Plan:
        cuts = sorted(draw(st.sets(st.integers(1, layers - 1), max_size=3))) if layers > 1 else []
        ranks, made = list(draw(st.permutations(range(6)))), []
        for left, (a, b) in zip(range(len(cuts), -1, -1), pairwise([0, *cuts, layers]), strict=True):
            group = [ranks.pop() for _ in range(draw(st.integers(1, len(ranks) - left)))]
            made.append(((a, b), group, draw(st.lists(st.integers(1, 4), min_size=len(group), max_size=len(group)))))
        return plan(c, made, draw(st.integers(1, 3)))

    return c, drawn(), drawn(), draw(st.integers(1, 12))


@settings(deadline=None, max_examples=60)
@given(changes())
def test_all_that_is_needed_arrives_once(case: tuple[Costs, Plan, Plan, int]) -> None:
    c, first, second, rows = case
    found = redistribute(first, second, c, rows)
    assert sorted(found.order) == list(range(rows))
    held = Counter(
        (device, layer, row)
        for layers, by_row in owners(first, c, rows)
        for row, device in enumerate(by_row)
        for layer in range(*layers)
    )
    for move in found.cache:
        for layer in range(*move.layers):
            for row in move.rows:
                assert held[move.source, layer, row] == 1
                held[move.target, layer, row] += 1
    for layers, by_row in owners(second, c, rows):
        for place, device in enumerate(by_row):
            for layer in range(*layers):
                assert held[device, layer, found.order[place]] == 1


def test_no_order_of_rows_moves_less() -> None:
    c = costs([[(0.0, 1.0)] * 3] * 4, [[(0.0, 1.0)] * 3] * 4, [LayerBytes(cache=n) for n in (5, 1, 2)])
    first = plan(c, [((0, 1), [0, 1], [3, 2]), ((1, 3), [2, 3], [1, 4])], 1)
    shared = plan(c, [((0, 3), [3, 0, 2, 1], [2, 1, 1, 1])], 1)
    piped = plan(c, [((0, 2), [1, 2], [2, 3]), ((2, 3), [3, 0], [3, 2])], 1)
    for second in (shared, piped):
        moved = sum(move.nbytes for move in redistribute(first, second, c, 5).cache)
        places, layers = keepers(second, c, 5), reads(second, c)
        least = min(
            sum(move.nbytes for move in cache_moves(filled(first, c, 5), homes, layers, c))
            for homes in permutations(places)
        )
        assert moved == least


def test_many_rows_are_hardly_more_work() -> None:
    """A mini-batch of 1,024 rows; rows and places are taken by kind."""
    c, rows = even_costs(8, 8, size=SIZE), 1024
    first, second = _hybrid(c, 4, 8, 64), plan(c, [((0, 8), range(8), [1] * 8)], 2)
    found = redistribute(first, second, c, rows)
    assert sorted(found.order) == list(range(rows))
    assert sum(move.nbytes for move in found.cache) == rows * 8 * 10 * 3 // 4


@st.composite
def leftovers(draw: st.DrawFn) -> tuple[Costs, Plan, list[Holding]]:
    """A plan, and rows of which devices have whatever they have."""
    c, _, second, rows = draw(changes())
    held: list[Holding] = []
    for _ in range(rows):
        found = {d: draw(st.integers(1, 2**c.size - 1)) for d in range(6) if draw(st.booleans())}
        held.append(tuple(found.items()))
    return c, second, held


@settings(deadline=None, max_examples=60)
@given(leftovers())
def test_what_is_left_comes_together_and_the_rest_is_named(case: tuple[Costs, Plan, list[Holding]]) -> None:
    c, second, held = case
    places, layers = keepers(second, c, len(held)), reads(second, c)
    order = aligned(held, places, layers, c)
    homes = dict(zip(order, places, strict=True))
    has = {(d, layer, row) for row, found in enumerate(held) for d, bits in found for layer in _layers(bits)}
    before = {(layer, row) for _, layer, row in has}
    gone = lost(held, layers)
    for move in cache_moves(held, [homes[row] for row in range(len(held))], layers, c):
        for layer in range(*move.layers):
            for row in move.rows:
                assert (move.source, layer, row) in has and (move.target, layer, row) not in has
        has |= {(move.target, layer, row) for layer in range(*move.layers) for row in move.rows}
    for row, keeper in homes.items():
        lacking = {layer for d, wanted in zip(keeper, layers, strict=True) for layer in _layers(wanted)
                   if (d, layer, row) not in has}  # fmt: skip
        assert lacking == {layer for layer in range(c.size) if (layer, row) not in before}
        assert bool(lacking) == (row in gone)


def _layers(bits: int) -> list[int]:
    return [layer for layer in range(bits.bit_length()) if bits >> layer & 1]


def test_of_several_that_have_it_each_sends_a_part() -> None:
    c = even_costs(3, 2, size=SIZE)
    second = plan(c, [((0, 2), [2], [1])], 1)
    both = ((0, 3), (1, 3))
    found = cache_moves([both] * 6, keepers(second, c, 6), reads(second, c), c)
    assert {(move.source, len(move.rows)) for move in found} == {(0, 3), (1, 3)}
    # Who has more of it sends it alone.
    (move,) = cache_moves([((0, 1), (1, 3))], keepers(second, c, 1), reads(second, c), c)
    assert (move.source, move.layers) == (1, (0, 2))


def test_who_has_all_of_a_row_keeps_it_whatever_came_first() -> None:
    """Possession decides, not history: after a crash, devices that have their rows still are given these."""
    c = even_costs(2, 2, size=SIZE)
    second = plan(c, [((0, 2), [0, 1], [3, 1])], 1)
    held: list[Holding] = [((1, 3),), ((0, 3),), (), ((0, 3),)]
    assert aligned(held, keepers(second, c, 4), reads(second, c), c) == (1, 2, 3, 0)
    assert lost(held, reads(second, c)) == (2,)


def test_nothing_moves_to_where_it_is() -> None:
    c = even_costs(4, 4, size=SIZE)
    p = _hybrid(c, 2, 4, 2)
    found = redistribute(p, p, c, 8)
    assert (found.cache, found.parameters, found.order) == ((), (), tuple(range(8)))


def test_replicas_share_the_sending() -> None:
    c = even_costs(4, 4, size=SIZE)
    second = plan(c, [((0, 4), range(4), [1] * 4)], 1)
    found = redistribute(_hybrid(c, 2, 4, 1), second, c, 8)
    assert {move.source for move in found.parameters} == {0, 1, 2, 3}
    sent = found.sent(batches=10)
    assert sum(sent.values()) == 10 * 8 * 40 / 2 + 4 * 2 * 40


def test_later_epochs_are_shuffled_among_what_a_device_keeps() -> None:
    c = even_costs(4, 4, size=SIZE)
    first, second = _hybrid(c, 2, 4, 2), plan(c, [((0, 4), range(4), [1] * 4)], 1)
    moving, ((_, later),) = redistribute(first, second, c, 8), owners(second, c, 8)
    keepers = [0] * 8
    for place, row in enumerate(moving.order):
        keepers[row] = later[place]
    samples = Random(0).sample(range(100, 124), 24)
    wanted = Random(1).sample(samples, 24)
    found = pinned_order(samples, keepers * 3, wanted, later * 3)
    assert sorted(found) == sorted(samples)
    kept = dict(zip(samples, keepers * 3, strict=True))
    assert [kept[sample] for sample in found] == list(later * 3)
    for device in range(4):
        assert [s for s in found if kept[s] == device] == [s for s in wanted if kept[s] == device]
    assert list(found) != samples
