"""What devices own: together, every weight of the model, and what is split exactly once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.plan.plan import Block, Program, Table
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.share import Axis, device_share, holdings, inventory
from edgempi.plan.spec import ModelSpec
from unit.plan.specs import decoder, programs


@given(programs())
def test_a_stage_holds_its_parameters(made: tuple[ModelSpec, Program]) -> None:
    spec, program = made
    for stage in program.prefill.stages:
        held = [holdings(device_share(program.prefill, spec, device), spec) for device in stage.devices]
        for parameter in {p.name: p for unit in stage.units for p in inventory(spec, unit)}.values():
            size = parameter.shape[parameter.dim]
            copies = Counter(i for mine in held for i in range(*mine[parameter.name].span))
            assert set(copies) == set(range(size)), parameter.name
            split = {
                Axis.heads: stage.modes.attention == Block.tensor,
                Axis.kv_heads: stage.modes.attention == Block.tensor,
                Axis.mlp_columns: stage.modes.mlp == Block.tensor,
                Axis.vocabulary: stage.modes.embedding == Table.vocabulary,
                Axis.none: False,
            }[parameter.axis]
            assert set(copies.values()) == {1 if split else stage.size}, parameter.name


@given(programs())
def test_stages_hold_every_parameter_of_the_model(made: tuple[ModelSpec, Program]) -> None:
    spec, program = made
    held = [holdings(device_share(program.prefill, spec, device), spec) for device in program.prefill.devices]
    named = {parameter.name for unit in spec.units for parameter in inventory(spec, unit)}
    assert {name for mine in held for name in mine} == named
    for mine in held:
        for name, holding in mine.items():
            start, stop = holding.span
            assert 0 <= start <= stop <= holding.parameter.shape[holding.parameter.dim], name
            assert holding.elements == 0 or holding.elements % (stop - start) == 0


def test_a_tied_head_and_table_are_one_holding() -> None:
    spec = decoder()
    planner = PlannerConfig(name=PlannerName.manual, vocabulary=[10, 7])
    plan = plan_program(spec, [1.0, 1.0], ParallelConfig(), planner, Forms()).prefill
    spans = [holdings(device_share(plan, spec, device), spec)["dec.embed.tokens.weight"].span for device in (0, 1)]
    assert spans == [(0, 10), (10, 17)]


def test_a_tied_head_in_another_stage_holds_the_table_there_too() -> None:
    spec = decoder()
    parallel = ParallelConfig(pipeline=True, modes=[Sharing.single])
    plan = plan_program(spec, [1.0, 1.0], parallel, PlannerConfig(), Forms()).prefill
    held = [holdings(device_share(plan, spec, device), spec) for device in (0, 1)]
    assert all("dec.embed.tokens.weight" in mine for mine in held)
    assert "dec.embed.positions.weight" not in held[1]


def test_grouped_heads_take_their_keys_along() -> None:
    spec = decoder()  # six heads in three groups
    planner = PlannerConfig(name=PlannerName.manual, heads=[4, 0, 2])
    plan = plan_program(spec, [1.0] * 3, ParallelConfig(modes=[Sharing.tensor]), planner, Forms()).prefill
    shares = [device_share(plan, spec, device) for device in range(3)]
    assert [share.kv_heads["dec"] for share in shares] == [(0, 2), (2, 2), (2, 3)]
    held = [holdings(share, spec) for share in shares]
    assert [mine["dec.0.attention.k.weight"].shape for mine in held] == [(8, 12), (0, 12), (4, 12)]
    assert [mine["dec.0.attention.out.weight"].shape for mine in held] == [(12, 16), (12, 0), (12, 8)]
