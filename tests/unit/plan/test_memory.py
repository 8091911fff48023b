"""Predicted memory: weights to the element, and what plans save."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.plan.memory import (
    check_budgets,
    predict_memory,
    shortage,
    unit_bytes,
    weight_bytes_by_block,
)
from edgempi.plan.plan import PRESETS, Plan, Program, Stage
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.share import device_share, holdings
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload
from unit.plan.specs import classifier, decoder, programs

WORK = Workload(2, 24)


def planned(spec: ModelSpec, sharing: Sharing = Sharing.hybrid, forms: Forms | None = None) -> Plan:
    even = PlannerConfig(name=PlannerName.even)
    return plan_program(spec, [1.0] * 3, ParallelConfig(modes=[sharing]), even, forms or Forms()).prefill


@settings(deadline=None)
@given(programs())
def test_weights_are_the_slices_that_are_held(made: tuple[ModelSpec, Program]) -> None:
    spec, program = made
    for device in program.prefill.devices:
        held = holdings(device_share(program.prefill, spec, device), spec).values()
        exact = 4 * sum(holding.elements for holding in held)
        assert predict_memory(program.prefill, spec, device, WORK).weights == exact
        assert sum(weight_bytes_by_block(program.prefill, spec, device).values()) == exact


def test_a_unit_weighs_what_one_more_costs() -> None:
    spec = decoder(kv_heads=6, group=1, columns=60)
    sizes, plan = unit_bytes(spec, "fp32"), planned(spec)
    (stage,) = plan.stages
    heads = replace(plan, stages=(replace(stage, heads={"dec": (3, 1, 2)}),))
    columns = replace(plan, stages=(replace(stage, mlp_columns={"dec": (21, 19, 20)}),))
    words = replace(plan, stages=(replace(stage, vocabulary=(7, 5, 5)),))
    before = predict_memory(plan, spec, 0, WORK).weights
    for changed, size in ((heads, "dec heads"), (columns, "dec columns"), (words, "vocabulary")):
        assert predict_memory(changed, spec, 0, WORK).weights - before == pytest.approx(sizes[size])


def test_tiles_keep_less_of_a_wide_mlp() -> None:
    spec = decoder(columns=480)
    tiled = predict_memory(planned(spec, forms=Forms(overlap="ring", subtiles=4)), spec, 0, WORK)
    assert tiled.activations < 0.7 * predict_memory(planned(spec), spec, 0, WORK).activations


def test_chunks_and_microbatches_keep_less_at_once() -> None:
    spec = decoder(columns=480)
    parallel = ParallelConfig(pipeline=True, modes=[Sharing.single])
    whole = plan_program(spec, [1.0] * 3, parallel, PlannerConfig(), Forms()).prefill
    peak = predict_memory(whole, spec, 1, WORK)
    for cut in (replace(whole, token_chunks=(1.0,) * 4), replace(whole, microbatches=2)):
        assert predict_memory(cut, spec, 1, WORK).activations <= 0.5 * peak.activations
    assert predict_memory(replace(whole, token_chunks=(1.0,) * 4), spec, 1, WORK).cache > peak.cache == 0


def test_a_table_that_is_loaded_first_has_no_part_in_the_peak_of_loading() -> None:
    spec = decoder(layers=8, columns=480)
    whole = Stage(spec.units, (0,), PRESETS["single"])
    memory = predict_memory(Plan((whole,)), spec, 0, WORK)
    assert memory.loading <= 4 * 12 * 480  # one layer's products, and not the table


def test_an_idle_device_needs_nothing() -> None:
    plan = Plan((Stage(classifier().units, (0,), PRESETS["single"]), Stage((), (1,), PRESETS["single"])))
    assert predict_memory(plan, classifier(), 1, WORK).peak == 0


def test_a_budget_that_is_too_small_names_what_would_fit() -> None:
    spec, plan = classifier(), planned(classifier())
    need = predict_memory(plan, spec, 1, WORK).peak
    budgets = [None, need - 1, need]
    assert shortage(plan, spec, WORK, budgets)[:2] == [0, 1]
    with pytest.raises(UserError, match=r"device b: needs .* Set weights=bf16 \(it fits then\), raise its budget by"):
        check_budgets(plan, spec, WORK, ["a", "b", "c"], budgets)
    check_budgets(plan, spec, WORK, ["a", "b", "c"], [None, need, None])
