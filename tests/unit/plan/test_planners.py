"""Planners give legal programs for any speeds, and say what is wrong where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.plan.check import check_program
from edgempi.plan.plan import PRESETS, Block, Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from unit.plan.specs import decoder, programs, rich


def _plan(spec: ModelSpec, parallel: ParallelConfig, planner: PlannerConfig | None = None, ranks: int = 3) -> Program:
    return plan_program(spec, [1.0] * ranks, parallel, planner or PlannerConfig(), Forms())


@given(programs())
def test_programs_are_legal(made: tuple[ModelSpec, Program]) -> None:
    spec, program = made
    check_program(program, spec)
    assert ("decode" in program.phases) == spec.generates
    assert [unit for stage in program.prefill.stages for unit in stage.units] == list(spec.units)
    for stage in program.prefill.stages:
        if stage.modes.attention == Block.tensor:
            stacks = {unit.partition(".")[0] for unit in stage.units if unit.partition(".")[2].isdigit()}
            assert {name: sum(stage.heads[name]) for name in stacks} == {n: spec.stacks[n].heads for n in stacks}
            columns = {name: sum(stage.mlp_columns[name]) for name in stacks}
            assert columns == {name: spec.stacks[name].mlp_columns for name in stacks}


@given(programs())
def test_embeddings_and_norms_stay_with_their_layers(made: tuple[ModelSpec, Program]) -> None:
    for stage in made[1].prefill.stages:
        assert not any(unit.endswith(".embed") for unit in stage.units[-1:])
        assert not stage.units or not stage.units[0].endswith("norm")


def test_shares_follow_the_speeds() -> None:
    spec = decoder(kv_heads=6, group=1, columns=400)
    planner = PlannerConfig(name=PlannerName.proportional, speeds=[3.0, 1.0, 2.0])
    (stage,) = _plan(spec, ParallelConfig(), planner).prefill.stages
    assert stage.heads == {"dec": (3, 1, 2)}
    assert stage.mlp_columns == {"dec": (208, 64, 128)}
    assert stage.token_spans(12) == ((0, 6), (6, 8), (8, 12))


def test_even_ignores_the_speeds() -> None:
    planner = PlannerConfig(name=PlannerName.even, speeds=[5.0, 1.0, 1.0])
    (stage,) = _plan(decoder(), ParallelConfig(), planner).prefill.stages
    assert stage.heads == {"dec": (2, 2, 2)}


def test_manual_counts_are_taken() -> None:
    planner = PlannerConfig(
        name=PlannerName.manual, heads=[6, 0, 0], mlp_columns=[1, 10, 0], vocabulary=[0, 17, 0], tokens=[0, 1, 3]
    )
    (stage,) = _plan(decoder(), ParallelConfig(), planner).prefill.stages
    assert (stage.heads, stage.mlp_columns) == ({"dec": (6, 0, 0)}, {"dec": (1, 10, 0)})
    assert (stage.vocabulary, stage.tokens) == ((0, 17, 0), (0, 1, 3))


def test_an_encoder_decoder_is_cut_over_both_stacks() -> None:
    stages = _plan(rich(), ParallelConfig(pipeline=True, modes=[Sharing.single])).prefill.stages
    assert [stage.units for stage in stages] == [
        ("enc.embed", "enc.0", "enc.1"),
        ("enc.2", "enc.norm", "dec.embed", "dec.0"),
        ("dec.1", "dec.2", "head"),
    ]


def test_decode_replaces_hybrid_alone() -> None:
    program = _plan(decoder(), ParallelConfig(stages=[[0, 1], [2]], modes=[Sharing.hybrid, Sharing.single]))
    assert [stage.modes for stage in program.decode.stages] == [PRESETS["tensor"], PRESETS["single"]]
    assert _plan(decoder(), ParallelConfig(decode=None)).decode == _plan(decoder(), ParallelConfig()).prefill


@pytest.mark.parametrize(
    ("parallel", "planner", "said"),
    [
        ({"pipeline": True, "modes": [Sharing.single]}, {}, "pipeline stages: 4; the model has 3 layers"),
        ({}, {"heads": [2, 2, 2, 2]}, r"dec heads: \[2, 2, 2, 2\] \(sum 8\); 4 counts .* sum to 6"),
        ({}, {"heads": [1, 1, 2, 2]}, "2 query heads share one key-value head"),
        ({}, {"mlp_columns": [-1, 12, 0, 0]}, r"mlp_columns: \[-1, 12, 0, 0\]"),
        ({}, {"vocabulary": [17, 1, 0, 0]}, "vocabulary.*sum to 17"),
        ({}, {"tokens": [0, 0, 0, 0]}, "tokens.*not all zero"),
        ({"modes": [Sharing.data]}, {"rows": [1, 1, -1, 1]}, "rows.*zero or more"),
        ({}, {"layers": [1, 1]}, r"planner.layers: \[1, 1\]; 1 counts"),
        ({"modes": [Sharing.single]}, {}, "single over 4 devices"),
        ({"stages": [[0, 1], [1, 2, 3]]}, {}, "each device 0 .. N-1 works in exactly one stage"),
    ],
)
def test_what_cannot_be_planned(parallel: dict, planner: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _plan(decoder(), ParallelConfig(**parallel), PlannerConfig(name=PlannerName.manual, **planner), ranks=4)
