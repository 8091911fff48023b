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
from edgempi.plan.training.redistribute import owners, pinned_order, redistribute
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
    second = plan(c, [((0, 3), [3, 0, 2, 1], [2, 1, 1, 1])], 1)
    moved = sum(move.nbytes for move in redistribute(first, second, c, 5).cache)
    before, ((_, later),) = owners(first, c, 5), owners(second, c, 5)
    weigh = [(by_row, c.cache_bytes(layers)) for layers, by_row in before]
    least = min(
        sum(nbytes for place, row in enumerate(order) for by_row, nbytes in weigh if by_row[row] != later[place])
        for order in permutations(range(5))
    )
    assert moved == least


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
