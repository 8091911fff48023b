"""The published planner: proportional to capacity, then mended for memory, columns before heads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgempi.errors import UserError
from edgempi.plan.check import check_plan
from edgempi.plan.galaxy import plan_galaxy
from edgempi.plan.memory import unit_bytes
from edgempi.plan.plan import Stage
from edgempi.plan.planners import Forms
from edgempi.plan.workload import Workload
from unit.plan.profiles import cluster
from unit.plan.specs import decoder, rich

SPEC = decoder(kv_heads=6, group=1, columns=60)
HEAD, COLUMN = (unit_bytes(SPEC, "fp32")[f"dec {what}"] for what in ("heads", "columns"))


def planned(speeds: Sequence[float], budgets: Sequence[float | None] | None = None) -> Stage:
    lent = None if budgets is None else [None if budget is None else int(budget) for budget in budgets]
    plan = plan_galaxy(SPEC, Workload(1, 8), cluster(speeds, budgets=lent), Forms())
    check_plan(plan, SPEC)
    (stage,) = plan.stages
    return stage


def test_shares_follow_capacities() -> None:
    stage = planned([3.0, 1.0, 2.0])
    assert stage.heads == {"dec": (3, 1, 2)}
    assert stage.mlp_columns == {"dec": (30, 10, 20)}
    assert stage.token_spans(9) == ((0, 3), (3, 6), (6, 9))


def test_columns_move_before_heads() -> None:
    stage = planned([3.0, 1.0, 2.0], [3 * HEAD + 12 * COLUMN, None, None])
    assert stage.heads == {"dec": (3, 1, 2)}
    assert stage.mlp_columns == {"dec": (12, 16, 32)}


def test_heads_move_where_columns_do_not_suffice() -> None:
    stage = planned([3.0, 1.0, 2.0], [1.5 * HEAD, 1.5 * HEAD + 60 * COLUMN, None])
    assert stage.heads == {"dec": (1, 2, 3)}
    for heads, columns, budget in zip(
        stage.heads["dec"], stage.mlp_columns["dec"], (1.5 * HEAD, 1.5 * HEAD + 60 * COLUMN), strict=False
    ):
        assert heads * HEAD + columns * COLUMN <= budget


def test_receivers_that_fill_up_drop_out() -> None:
    stage = planned([3.0, 1.0, 2.0], [3 * HEAD, HEAD + 11 * COLUMN, None])
    assert stage.mlp_columns == {"dec": (0, 11, 49)}


def test_what_fits_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match=r"device d0: .* MB more layers than it lends"):
        planned([3.0, 1.0], [HEAD, HEAD])


def test_both_stacks_are_shared() -> None:
    plan = plan_galaxy(rich(), Workload(1, 6, 6), cluster([1.0, 2.0]), Forms())
    check_plan(plan, rich())
    assert set(plan.stages[0].heads) == {"enc", "dec"}
