"""Schedules: valid for any plan, and every kind of damage is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.errors import UserError
from edgempi.plan.apportion import length
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import (
    Backward,
    Forward,
    Receive,
    Reduce,
    Schedule,
    Send,
    Step,
    classic_depths,
    gpipe_depths,
    microbatch_spans,
    schedule,
    spaced_depths,
)
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.sizes import LayerBytes
from edgempi.plan.training.validate import check_schedule, in_flight
from unit.plan.training.workloads import costs, even_costs, plan

SIZE = LayerBytes(trained=100, forward=9, backward=1)


def _depths(p: Plan, per_stage: tuple[int, ...]) -> dict[int, int]:
    return {device: k for stage, k in zip(p.stages, per_stage, strict=True) for device in stage.devices}


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Costs, Plan, int]:
    """Layers and devices cut into stages, with any shares of rows, zero too."""
    stages = draw(st.integers(1, 4))
    layers = [draw(st.integers(1, 3)) for _ in range(stages)]
    groups = [draw(st.integers(1, 3)) for _ in range(stages)]
    ranks = draw(st.permutations(range(sum(groups))))
    size = draw(
        st.sampled_from([SIZE, replace(SIZE, backward=0), replace(SIZE, tables={"t": 7}, trains_tables=frozenset("t"))])
    )
    c = even_costs(len(ranks), sum(layers), size=size)
    made, layer, rank = [], 0, 0
    for count, group in zip(layers, groups, strict=True):
        rows = draw(st.lists(st.integers(0, 5), min_size=group, max_size=group).filter(any))
        made.append(((layer, layer + count), ranks[rank : rank + group], rows))
        layer, rank = layer + count, rank + group
    return c, plan(c, made, draw(st.integers(1, 6))), draw(st.integers(1, 20))


@settings(deadline=None, max_examples=60)
@given(pipelines(), st.sampled_from(["classic", "spaced", "gpipe"]), st.sampled_from([1, 150, 10**6]))
def test_any_pipeline_has_a_schedule(case: tuple[Costs, Plan, int], form: str, bucket_bytes: int) -> None:
    c, p, rows = case
    batch = microbatch_spans(rows, p.microbatches)
    stages = len(p.stages)
    made = {"classic": classic_depths(stages), "spaced": spaced_depths(stages), "gpipe": gpipe_depths(stages, 99)}[form]
    check_schedule(schedule(p, c, rows, made, bucket_bytes), batch, _depths(p, made))


@settings(deadline=None, max_examples=40)
@given(pipelines())
def test_every_gradient_is_summed_once(case: tuple[Costs, Plan, int]) -> None:
    c, p, rows = case
    made = schedule(p, c, rows, classic_depths(len(p.stages)), 1)
    for stage, layers in zip(p.stages, (c.span(stage.units) for stage in p.stages), strict=True):
        for device in stage.devices:
            found = [action.bucket for action in made[device] if isinstance(action, Reduce)]
            own = [b for b in found if length(b.layers)]
            assert all(b.devices == stage.devices for b in own)
            summed = sorted(layer for b in own for layer in range(*b.layers))
            assert summed == (list(range(*layers)) if stage.size > 1 else [])
            assert sum(b.nbytes for b in own) == (100 * length(layers) if stage.size > 1 else 0)


def test_one_device() -> None:
    c = even_costs(1, 3, size=SIZE)
    p = plan(c, [((0, 3), [0], [1])], 2)
    expected = [Forward(0, 0, (0, 2), (0, 3)), Backward(0, 0, (0, 2), (0, 3))]
    expected += [Forward(0, 1, (2, 4), (0, 3)), Backward(0, 1, (2, 4), (0, 3)), Step(0, (0, 3))]
    assert list(schedule(p, c, 4, (1,))[0]) == expected


def test_sums_begin_under_the_last_backward_pass() -> None:
    c = even_costs(2, 3, size=SIZE)
    p = plan(c, [((0, 3), [0, 1], [3, 1])], 1)
    (forward, *rest) = schedule(p, c, 8, (1,), bucket_bytes=200)[0]
    assert forward == Forward(0, 0, (0, 6), (0, 3))
    assert [type(action) for action in rest] == [Backward, Reduce, Backward, Reduce, Step]
    assert [action.layers for action in rest if isinstance(action, Backward)] == [(1, 3), (0, 1)]


def test_what_stages_share_is_summed_over_all_that_hold_it() -> None:
    tied = LayerBytes(trained=10, tables={"table": 70}, trains_tables=frozenset({"table"}))
    sizes = [tied, LayerBytes(trained=10), replace(tied, tables={"table": 70, "frozen": 5})]
    line = [[(0.0, 1.0)] * 3] * 3
    c = costs(line, line, sizes)
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1]), ((2, 3), [2], [1])], 2)
    made = schedule(p, c, 2, classic_depths(3))
    found = {
        d: [(a.bucket.devices, a.bucket.tables, a.bucket.nbytes) for a in made[d] if isinstance(a, Reduce)]
        for d in made
    }
    assert found == {0: [((0, 2), ("table",), 70)], 1: [], 2: [((0, 2), ("table",), 70)]}
    check_schedule(made, microbatch_spans(2, 2), {0: 3, 1: 2, 2: 1})


def test_1f1b_by_hand() -> None:
    c = even_costs(2, 2, size=SIZE)
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1])], 3)
    made = schedule(p, c, 3, classic_depths(2))
    order = [(type(a).__name__[0], a.microbatch) for a in made[0] if isinstance(a, Forward | Backward)]
    assert order == [("F", 0), ("F", 1), ("B", 0), ("F", 2), ("B", 1), ("B", 2)]
    order = [(type(a).__name__[0], a.microbatch) for a in made[1] if isinstance(a, Forward | Backward)]
    assert order == [("F", 0), ("B", 0), ("F", 1), ("B", 1), ("F", 2), ("B", 2)]
    assert [in_flight(made[d]) for d in (0, 1)] == [2, 1]


def test_rows_come_from_who_has_them() -> None:
    c = even_costs(5, 2, size=SIZE)
    p = plan(c, [((0, 1), [0, 1], [5, 1]), ((1, 2), [2, 3, 4], [1, 1, 1])], 2)
    made = schedule(p, c, 12, classic_depths(2))
    sent = [(a.peer, a.rows, a.nbytes) for a in made[0] if isinstance(a, Send) and a.microbatch == 1]
    assert sent == [(2, (6, 8), 18), (3, (8, 10), 18), (4, (10, 11), 9)]
    got = [(a.peer, a.rows, a.nbytes) for a in made[4] if isinstance(a, Receive) and a.microbatch == 1]
    assert got == [(0, (10, 11), 9), (1, (11, 12), 9)]
    back = [(a.peer, a.rows, a.nbytes) for a in made[4] if isinstance(a, Send)]
    assert back[:2] == [(0, (4, 5), 1), (1, (5, 6), 1)]


def test_a_later_stage_with_more_under_way_is_a_deadlock() -> None:
    c = even_costs(2, 2, size=SIZE)
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1])], 4)
    with pytest.raises(UserError, match="0 waits for gradient of microbatch 0 from 1; 1 waits for activation"):
        check_schedule(schedule(p, c, 4, (1, 2)), microbatch_spans(4, 4), {0: 1, 1: 2})


def _drop(kind: type) -> Callable[[Schedule], Schedule]:
    def damage(made: Schedule) -> Schedule:
        device = next(d for d, actions in made.items() if any(isinstance(a, kind) for a in actions))
        place = next(i for i, a in enumerate(made[device]) if isinstance(a, kind))
        return {**made, device: made[device][:place] + made[device][place + 1 :]}

    return damage


def _swap_sends(made: Schedule) -> Schedule:
    actions = list(made[0])
    a, b = [i for i, action in enumerate(actions) if isinstance(action, Send)][:2]
    actions[a], actions[b] = actions[b], actions[a]
    return {**made, 0: tuple(actions)}


def _more_bytes(made: Schedule) -> Schedule:
    return {**made, 0: tuple(replace(a, nbytes=99) if isinstance(a, Send) else a for a in made[0])}


def _backward_first(made: Schedule) -> Schedule:
    actions = list(made[2])
    forward, back = (next(i for i, a in enumerate(actions) if isinstance(a, kind)) for kind in (Forward, Backward))
    actions[forward], actions[back] = actions[back], actions[forward]
    return {**made, 2: tuple(actions)}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_drop(Send), "is received once"),
        (_drop(Receive), "is received once"),
        (_drop(Forward), "passes each layer once"),
        (_drop(Backward), "passes each layer once"),
        (_drop(Reduce), "wait for a sum|waits for a sum"),
        (_drop(Step), "passes each layer once|only step"),
        (_swap_sends, "in the order of sending"),
        (_more_bytes, "is received once"),
        (_backward_first, "forward comes first"),
    ],
)
def test_damage_is_found(damage: Callable[[Schedule], Schedule], said: str) -> None:
    c = even_costs(3, 2, size=SIZE)
    p = plan(c, [((0, 1), [0, 1], [1, 1]), ((1, 2), [2], [1])], 3)
    made = schedule(p, c, 6, classic_depths(2))
    batch, depths = microbatch_spans(6, 3), {0: 2, 1: 2, 2: 1}
    check_schedule(made, batch, depths)
    with pytest.raises(UserError, match=said):
        check_schedule(damage(made), batch, depths)


def test_too_many_under_way_is_found() -> None:
    c = even_costs(2, 2, size=SIZE)
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1])], 4)
    made = schedule(p, c, 4, gpipe_depths(2, 4))
    with pytest.raises(UserError, match="4 microbatches under way; at most 2"):
        check_schedule(made, microbatch_spans(4, 4), {0: 2, 1: 1})


def test_messages_are_received_in_the_order_of_sending_per_channel() -> None:
    c = even_costs(2, 2, size=SIZE)
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1])], 5)
    made = schedule(p, c, 5, spaced_depths(2))
    got = [a.microbatch for a in made[1] if isinstance(a, Receive)]
    assert all(a < b for a, b in pairwise(got))
