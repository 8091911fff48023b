"""Predicted bytes of forms and chunks; that they equal the counters is `tests/mpi/test_bytes.py`."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.plan.messages import SCALE_BYTES, sent_bytes, tile_bytes
from edgempi.plan.plan import PRESETS, Plan, Program, Stage
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload
from unit.plan.specs import classifier, decoder, programs


def total(plan: Plan, spec: ModelSpec, work: Workload) -> int:
    return sum(sum(units.values()) for units in sent_bytes(plan, spec, work))


def test_int8_carries_scales_for_each_row() -> None:
    assert [tile_bytes(dtype, 3, 32) for dtype in ("fp32", "bf16", "int8")] == [384, 192, 3 * (32 + 2 * SCALE_BYTES)]
    assert tile_bytes("int8", 3, 10) == 3 * (10 + SCALE_BYTES)
    assert tile_bytes("int8", 0, 10) == tile_bytes("int8", 3, 0) == 0


@settings(deadline=None)
@given(programs(), st.integers(1, 3), st.integers(1, 9))
def test_forms_differ_by_their_elements_and_scales(made: tuple[ModelSpec, Program], rows: int, tokens: int) -> None:
    spec, program = made
    work = Workload(rows, tokens, tokens if spec.enc and spec.dec else 0)
    fp32, bf16, int8 = (total(replace(program.prefill, wire_dtype=d), spec, work) for d in ("fp32", "bf16", "int8"))
    assert fp32 == 2 * bf16
    scales = int8 - fp32 // 4
    assert scales >= 0
    assert scales % SCALE_BYTES == 0
    assert (scales == 0) == (fp32 == 0)


def test_chunks_hand_over_the_same_bytes() -> None:
    spec, work = decoder(layers=3), Workload(2, 11)
    whole = plan_program(
        spec, [1.0] * 3, ParallelConfig(pipeline=True, modes=[Sharing.single]), PlannerConfig(), Forms()
    ).prefill
    for dtype in ("fp32", "int8"):
        plan = replace(whole, wire_dtype=dtype)
        assert total(replace(plan, token_chunks=(3.0, 0.0, 2.0, 1.0)), spec, work) == total(plan, spec, work) > 0


def test_a_device_without_units_sends_nothing() -> None:
    plan = Plan((Stage(classifier().units, (1,), PRESETS["single"]), Stage((), (0,), PRESETS["single"])))
    assert total(plan, classifier(), Workload(1, 8)) == 0
