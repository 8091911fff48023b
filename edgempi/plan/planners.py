"""Planners: from a model, devices and a way of sharing to a Program. Pure functions on numbers.

`even` gives every device the same, `proportional` shares by given speeds, `manual` takes the user's counts. All three
are one construction that differs in the weights it apportions by, and in which vectors the user fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.plan.apportion import apportion
from edgempi.plan.check import check_program
from edgempi.plan.plan import PRESETS, Block, Connective, Modes, Plan, Program, Stage, Table, with_modes
from edgempi.plan.spec import ModelSpec, Stack, is_layer, stack_of

Number = TypeVar("Number", int, float)

COLUMN_QUANTUM = 16
"""MLP columns are shared in multiples of this where there are many: GEMM kernels work in such blocks."""


@dataclass(frozen=True)
class Forms:
    """The dtypes a plan fixes, and how its communication is driven (see `Plan`)."""

    weight_dtype: str = "fp32"
    wire_dtype: str = "fp32"
    overlap: str = "blocking"
    subtiles: int = 1
    column_blocks: int = 1
    token_chunks: tuple[float, ...] = ()

    def plan(self, stages: tuple[Stage, ...], microbatches: int = 1) -> Plan:
        """A plan of these stages in these forms."""
        return Plan(
            stages=stages,
            weight_dtype=self.weight_dtype,
            wire_dtype=self.wire_dtype,
            microbatches=microbatches,
            column_blocks=self.column_blocks,
            overlap=self.overlap,
            subtiles=self.subtiles,
            token_chunks=self.token_chunks,
        )


def plan_program(
    spec: ModelSpec, speeds: Sequence[float], parallel: ParallelConfig, planner: PlannerConfig, forms: Forms
) -> Program:
    """Plan a program for `len(speeds)` devices.

    Args:
        spec: the model.
        speeds: the cluster's relative speeds in rank order.
        parallel: the way of sharing: stages, modes, decode mode, microbatches.
        planner: who decides the shares, and the counts that the user fixed.
        forms: dtypes of weights and wire.

    Returns:
        The checked program; phase `decode` stands beside `prefill` where the model generates.

    Raises:
        UserError: more stages than layers, counts that do not sum, modes that do not fit (see `plan/check.py`).
    """
    weights = list(speeds if planner.speeds is None else planner.speeds)
    if planner.name is not PlannerName.proportional:
        weights = [1.0] * len(speeds)
    groups = _groups(parallel, len(speeds))
    _refuse_unused(planner, [PRESETS[sharing] for sharing in parallel.modes])
    modes = [PRESETS[sharing] for sharing in _one_per_stage(parallel.modes, len(groups))]
    runs = unit_runs(spec, groups, weights, planner.layers)
    stages = [
        _stage(spec, units, group, mode, [weights[d] for d in group], planner)
        for units, group, mode in zip(runs, groups, modes, strict=True)
    ]
    return program_of(forms.plan(tuple(stages), parallel.microbatches), spec, parallel.decode)


def program_of(prefill: Plan, spec: ModelSpec, decode: Sharing | None) -> Program:
    """The checked program of a prefill plan: `decode` replaces `hybrid` where the model writes text.

    Raises:
        UserError: the plan does not fit the model (see `plan/check.py`).
    """
    phases = {"prefill": prefill}
    if spec.generates:
        phases["decode"] = prefill if decode is None else with_modes(prefill, "hybrid", decode)
    program = Program(phases)
    check_program(program, spec)
    return program


def _refuse_unused(planner: PlannerConfig, modes: Sequence[Modes]) -> None:
    """A fixed share that no stage's mode reads is a misunderstanding, not a wish."""
    readers = {
        "heads": any(mode.attention == Block.tensor for mode in modes),
        "mlp_columns": any(mode.mlp == Block.tensor for mode in modes),
        "vocabulary": any(Table.vocabulary in (mode.embedding, mode.head) for mode in modes),
        "tokens": any(mode.connective == Connective.tokens for mode in modes),
        "rows": any(mode.connective == Connective.rows for mode in modes),
    }
    for name, read in readers.items():
        if getattr(planner, name) is not None and not read:
            said = ", ".join(mode.name for mode in modes)
            raise UserError(
                f"planner.{name}", value=getattr(planner, name), rule=f"{said} does not share by {name}",
                remedy=f"Leave planner.{name} out, or choose another parallel=",
            )  # fmt: skip


def _groups(parallel: ParallelConfig, size: int) -> list[list[int]]:
    if parallel.stages is not None:
        return [list(group) for group in parallel.stages]
    everyone = list(range(size))
    return [[device] for device in everyone] if parallel.pipeline else [everyone]


def _one_per_stage(modes: Sequence[Sharing], stages: int) -> list[str]:
    if len(modes) == 1:
        return [modes[0].value] * stages
    return [mode.value for mode in modes]


def unit_runs(
    spec: ModelSpec, groups: Sequence[Sequence[int]], weights: Sequence[float], fixed: Sequence[int] | None
) -> list[tuple[str, ...]]:
    """Cut the units into one run per stage: layers are apportioned, the rest goes with its neighbouring layer."""
    layers = [unit for unit in spec.units if is_layer(unit)]
    strengths = [sum(weights[device] for device in group) for group in groups]
    able = sum(1 for strength in strengths if strength > 0)
    if fixed is None and able > len(layers):
        raise UserError(
            "pipeline stages", value=able, rule=f"the model has {len(layers)} layers, and each stage needs one",
            remedy=f"Use at most {len(layers)} stages, or planner=manual planner.layers=[..] with zeros",
        )  # fmt: skip
    counts = apportion(len(layers), strengths) if fixed is None else tuple(fixed)
    if len(counts) != len(groups) or sum(counts) != len(layers) or min(counts) < 0:
        raise UserError(
            "planner.layers", value=list(counts),
            rule=f"{len(groups)} counts of zero or more that sum to {len(layers)} layers", remedy="Correct the counts",
        )  # fmt: skip
    last_of = [stage for stage, count in enumerate(counts) for _ in range(count)]
    runs: list[list[str]] = [[] for _ in groups]
    ahead = iter(last_of)
    stage = last_of[0]
    pending: list[str] = []
    for unit in spec.units:
        if unit in layers:
            stage = next(ahead)
            runs[stage] += [*pending, unit]
            pending = []
        elif unit.endswith(".embed"):
            pending.append(unit)  # an embedding goes with the layer after it
        else:
            runs[stage].append(unit)
    return [tuple(run) for run in runs]


def _stage(
    spec: ModelSpec,
    units: tuple[str, ...],
    group: Sequence[int],
    modes: Modes,
    weights: Sequence[float],
    planner: PlannerConfig,
) -> Stage:
    if sum(weights) <= 0:  # an idle stage: its shares are nobody's, any weights do
        weights = [1.0] * len(group)
    manual = planner if planner.name is PlannerName.manual else PlannerConfig()

    def fixed(values: Sequence[Number] | None) -> tuple[Number, ...] | None:
        return None if values is None else tuple(values[device] for device in group)

    stacks = {stack_of(unit): spec.stacks[stack_of(unit)] for unit in units if is_layer(unit)}
    tensor_attention, tensor_mlp = modes.attention == Block.tensor, modes.mlp == Block.tensor
    vocabulary = spec.stacks[spec.last].embedding.vocabulary
    split_table = Table.vocabulary in (modes.embedding, modes.head)
    return Stage(
        units=units,
        devices=tuple(group),
        modes=modes,
        heads={n: fixed(manual.heads) or head_counts(s, weights) for n, s in stacks.items()}
        if tensor_attention
        else {},
        mlp_columns=(
            {n: fixed(manual.mlp_columns) or column_counts(s, weights) for n, s in stacks.items()} if tensor_mlp else {}
        ),
        vocabulary=(fixed(manual.vocabulary) or apportion(vocabulary, weights)) if split_table else (),
        tokens=(fixed(manual.tokens) or tuple(weights)) if modes.connective == Connective.tokens else (),
        rows=(fixed(manual.rows) or tuple(weights)) if modes.connective == Connective.rows else (),
    )


def head_counts(stack: Stack, weights: Sequence[float]) -> tuple[int, ...]:
    """Query heads in proportion to `weights`, those of a key-value head together."""
    return tuple(groups * stack.group for groups in apportion(stack.kv_heads, weights))


def column_counts(stack: Stack, weights: Sequence[float]) -> tuple[int, ...]:
    """MLP columns in proportion to `weights`."""
    return apportion(stack.mlp_columns, weights, column_quantum(stack, len(weights)))


def column_quantum(stack: Stack, devices: int) -> int:
    """The grain in which MLP columns are shared: a kernel's block, where there are many."""
    columns = stack.mlp_columns
    coarse = columns % COLUMN_QUANTUM == 0 and columns >= 4 * COLUMN_QUANTUM * devices
    return COLUMN_QUANTUM if coarse else 1
