"""Every rule of a plan, broken once: one sentence with the value, the rule and the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.errors import UserError
from edgempi.plan.check import check_plan, check_program
from edgempi.plan.plan import PRESETS, Block, Connective, Plan, Program, Stage, Table
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from unit.plan.specs import classifier, decoder, rich

SPEC = decoder()


def _program(sharing: Sharing) -> Program:
    parallel = ParallelConfig(stages=[[0, 1], [2]], modes=[sharing, Sharing.single])
    return plan_program(SPEC, [1.0] * 3, parallel, PlannerConfig(), Forms())


def _with(sharing: Sharing, **changed: object) -> Plan:
    plan = _program(sharing).prefill
    return replace(plan, stages=(replace(plan.stages[0], **changed), *plan.stages[1:]))


def _modes(name: str, **changed: object) -> object:
    return replace(PRESETS[name], **changed)


@pytest.mark.parametrize(
    ("plan", "value", "rule"),
    [
        (_with(Sharing.hybrid, units=("dec.0",)), "first odd one dec.0", "in order: dec.embed .. head"),
        (_with(Sharing.hybrid, units=("dec.embed", "dec.0")), "units", "the model's 5"),
        (_with(Sharing.hybrid, devices=(0, 2)), "[0, 2, 2]", "exactly one stage"),
        (_with(Sharing.hybrid, devices=(0, 3)), "[0, 3, 2]", "each device 0 .. N-1"),
        (_with(Sharing.data, modes=PRESETS["single"]), "single over 2 devices", "a single stage has one device"),
        (_with(Sharing.hybrid, heads={}), "[] (sum 0)", "2 counts of zero or more that sum to 6"),
        (_with(Sharing.hybrid, heads={"dec": (4, 4)}), "[4, 4] (sum 8)", "sum to 6"),
        (_with(Sharing.hybrid, heads={"dec": (8, -2)}), "[8, -2]", "zero or more"),
        (_with(Sharing.tensor, heads={"dec": (3, 3)}), "[3, 3]", "2 query heads share one key-value head"),
        (_with(Sharing.tensor, mlp_columns={"dec": (5, 5)}), "[5, 5] (sum 10)", "sum to 11"),
        (_with(Sharing.tensor, vocabulary=(17,)), "[17]", "2 counts"),
        (_with(Sharing.sequence, tokens=(0, 0)), "[0, 0]", "not all zero"),
        (_with(Sharing.sequence, tokens=()), "[]", "one weight"),
        (_with(Sharing.data, rows=(1, 1, 1)), "[1, 1, 1]", "each of 2 devices"),
        (
            _with(Sharing.data, modes=_modes("data", attention=Block.sequence)),
            "rows/sequence/local", "needs connective blocks by tokens",
        ),
        (_with(Sharing.sequence, modes=_modes("sequence", mlp=Block.sequence)), "sequence/sequence", "an MLP is"),
        (_with(Sharing.data, modes=_modes("data", mlp=Block.tensor)), "rows/local/tensor", "hands it"),
        (_with(Sharing.data, modes=_modes("data", head=Table.vocabulary)), "rows/local/local", "hands it"),
        (_with(Sharing.hybrid, modes=_modes("hybrid", attention=Block.local)), "tokens/local/tensor", "hands it"),
    ],
)  # fmt: skip
def test_a_broken_rule(plan: Plan, value: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        check_plan(plan, SPEC)
    error = caught.value
    assert value in f"{error.what} {error.value}"
    assert rule in error.rule
    assert error.remedy
    assert str(error).count("\n") == 0


@pytest.mark.parametrize("sharing", [Sharing.data, Sharing.tensor, Sharing.sequence, Sharing.hybrid, Sharing.heads])
def test_presets_keep_the_rules(sharing: Sharing) -> None:
    check_program(_program(sharing), SPEC)


def test_an_idle_stage_is_legal() -> None:
    plan = _program(Sharing.hybrid).prefill
    idle = Stage(units=(), devices=(3,), modes=PRESETS["single"])
    check_plan(replace(plan, stages=(*plan.stages, idle)), SPEC)


def test_uneven_modes_of_attention_and_mlp_are_legal() -> None:
    mixed = replace(PRESETS["hybrid"], mlp=Block.local)
    check_plan(_with(Sharing.hybrid, modes=mixed), SPEC)
    assert mixed == PRESETS["heads"]
    assert replace(mixed, mlp=Block.tensor, attention=Block.sequence).name == "tokens/sequence/tensor"
    assert mixed.connective == Connective.tokens


def test_phases_own_the_same_weights() -> None:
    program = _program(Sharing.hybrid)
    first, *others = program.decode.stages
    other = replace(program.decode, stages=(replace(first, heads={"dec": (6, 0)}), *others))
    with pytest.raises(UserError, match=r"phase decode: .*a later phase works with the weights"):
        check_program(Program({"prefill": program.prefill, "decode": other}), SPEC)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_dtype": "fp8"}, "plan weight_dtype: fp8"),
        ({"wire_dtype": "int3"}, "plan wire_dtype: int3"),
        ({"overlap": "warp"}, "plan overlap: warp"),
        ({"version": 77}, "plan version: 77"),
        ({"microbatches": 0}, "plan microbatches: 0"),
        ({"column_blocks": 1.5}, "plan column_blocks: 1.5"),
        ({"token_chunks": (0.0, 0.0)}, r"plan token_chunks: \[0.0, 0.0\]; one finite weight"),
        ({"token_chunks": (2.0, -1.0)}, r"plan token_chunks: \[2.0, -1.0\]; one finite weight"),
        ({"token_chunks": (1.0, float("nan"))}, "plan token_chunks: .*; one finite weight"),
        ({"token_chunks": ("much", 1.0)}, "plan token_chunks: .*; one finite weight"),
    ],
)
def test_forms_that_nobody_knows(change: dict, said: str) -> None:
    plan = plan_program(SPEC, [1.0, 1.0], ParallelConfig(), PlannerConfig(), Forms()).prefill
    with pytest.raises(UserError, match=said):
        check_plan(replace(plan, **change), SPEC)


@pytest.mark.parametrize("spec", [classifier(), rich()], ids=["encoder", "both"])
def test_tokens_that_see_later_ones_cannot_pass_in_chunks(spec: ModelSpec) -> None:
    parallel = ParallelConfig(modes=[Sharing.single], pipeline=True)
    with pytest.raises(UserError, match=r"plan token_chunks: 2 chunks for .*; only a causal decoder"):
        plan_program(spec, [1.0, 1.0], parallel, PlannerConfig(), Forms(token_chunks=(1.0, 2.0)))


def test_phases_with_other_modes_over_the_same_vectors() -> None:
    plan = plan_program(SPEC, [1.0, 1.0], ParallelConfig(), PlannerConfig(), Forms()).prefill
    modes = replace(PRESETS["tensor"], mlp=Block.local)
    other = replace(plan, stages=tuple(replace(stage, modes=modes) for stage in plan.stages))
    with pytest.raises(UserError, match="phase decode"):
        check_program(Program({"prefill": plan, "decode": other}), SPEC)
    with pytest.raises(UserError, match="phase decode"):
        check_program(Program({"prefill": plan, "decode": replace(plan, microbatches=2)}), SPEC)
    with pytest.raises(UserError, match="a phase named prefill"):
        check_program(Program({"decode": plan}), SPEC)
