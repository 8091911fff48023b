"""Whether a plan fits a model: every rule a plan must keep, each broken one a sentence with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from edgempi.errors import UserError
from edgempi.plan.plan import PRESETS, Block, Connective, Plan, Program, Stage, Table
from edgempi.plan.share import device_share, holdings, with_first_layers
from edgempi.plan.spec import ModelSpec, is_layer, stack_of

WEIGHT_DTYPES = ("fp32", "bf16")
WIRE_DTYPES = ("fp32", "bf16", "int8")
OVERLAPS = ("blocking", "ring", "icollective", "auto")
TRAINING = ("train", "cached")
"""The phases of a program that trains; the second one, where there is one, begins with weights that were moved."""


def check_program(program: Program, spec: ModelSpec) -> None:
    """Check every phase, and that all phases can work with the weights and caches of the first.

    Raises:
        UserError: no `prefill`; a phase that owns other weights, or lays rows and key-value heads out otherwise; a
            phase of training that is none, or shares anything but whole rows.
    """
    if "train" in program.phases:
        _check_training(program, spec)
        return
    if "prefill" not in program.phases:
        raise UserError(
            "program phases", value=list(program.phases), rule="there is a phase named prefill",
            remedy="Name the first phase prefill",
        )  # fmt: skip
    first = program.prefill
    for name, plan in program.phases.items():
        check_plan(plan, spec)
        if _kept(plan, spec) != _kept(first, spec):
            raise UserError(
                f"phase {name}", value=f"{plan.name}, unlike {first.name}",
                rule="a later phase works with the weights, the cache and the rows of prefill: it may be the same, or "
                "hybrid and tensor in place of each other", remedy="Set parallel.decode=tensor, hybrid or null",
            )  # fmt: skip


def _check_training(program: Program, spec: ModelSpec) -> None:
    first = program.phases["train"]
    for name, plan in program.phases.items():
        if name not in TRAINING:
            raise UserError(
                "program phases", value=name, rule="beside train there is at most cached", remedy="Leave it out"
            )
        check_plan(plan, spec)
        odd = [stage.modes.name for stage in plan.stages if stage.modes not in (PRESETS["single"], PRESETS["data"])]
        if odd or plan.token_chunks:
            raise UserError(
                f"phase {name}", value=", ".join(odd) or "token_chunks",
                rule="training shares layers and whole rows: its stages are single or data",
                remedy="Set the stages' modes to data",
            )  # fmt: skip
        if (plan.devices, plan.weight_dtype) != (first.devices, first.weight_dtype):
            raise UserError(
                f"phase {name}", value=f"{len(plan.devices)} devices, {plan.weight_dtype}",
                rule=f"as in train: {len(first.devices)} devices, {first.weight_dtype}",
                remedy="Name all devices in every phase, idle ones in stages without units",
            )  # fmt: skip


def _kept(plan: Plan, spec: ModelSpec) -> list[object]:
    """What has to stay as it is from phase to phase: forms, and on each device its slices and its cache's rows."""
    kept: list[object] = [plan.weight_dtype, plan.column_blocks, plan.microbatches]
    for device in plan.devices:
        share = device_share(plan, spec, device)
        modes = share.stage.modes
        listed = replace(share, stage=with_first_layers(share.stage))
        slices = {name: holding.span for name, holding in holdings(listed, spec).items()}
        splits = (modes.attention, modes.mlp, modes.embedding, modes.head)
        kept.append((share.stage.units, slices, splits, modes.connective == Connective.rows, share.stage.rows))
    return kept


def check_plan(plan: Plan, spec: ModelSpec) -> None:
    """Check one plan against the model it is for.

    Raises:
        UserError: units missing or out of order, a device in two stages, shares that do not sum or have the wrong
            length, head shares that cut a key-value group, modes that cannot stand together.
    """
    _check_forms(plan)
    _check_chunks(plan, spec)
    units = [unit for stage in plan.stages for unit in stage.units]
    if units != list(spec.units):
        odd = next((a for a, b in zip(units, spec.units, strict=False) if a != b), "its end")
        raise UserError(
            "plan units", value=f"{len(units)} units, first odd one {odd}",
            rule=f"the stages' units are the model's {len(spec.units)}, in order: {spec.units[0]} .. {spec.units[-1]}",
            remedy="Make the plan for this model (edgempi plan)",
        )  # fmt: skip
    devices = [device for stage in plan.stages for device in stage.devices]
    if sorted(devices) != list(range(len(devices))):
        raise UserError(
            "plan devices", value=devices, rule="each device 0 .. N-1 works in exactly one stage",
            remedy="Name every rank once",
        )  # fmt: skip
    for index, stage in enumerate(plan.stages):  # a stage without units is legal: its devices stay idle
        _check_stage(f"stage {index}", stage, spec)


def _check_forms(plan: Plan) -> None:
    allowed = {
        "weight_dtype": WEIGHT_DTYPES,
        "wire_dtype": WIRE_DTYPES,
        "overlap": OVERLAPS,
        "version": (1,),
    }
    for what, values in allowed.items():
        if getattr(plan, what) not in values:
            said = ", ".join(map(str, values))
            raise UserError(f"plan {what}", value=getattr(plan, what), rule=f"it is {said}", remedy="Correct the plan")
    for what in ("microbatches", "column_blocks", "subtiles"):
        count = getattr(plan, what)
        if not isinstance(count, int) or count < 1:
            raise UserError(f"plan {what}", value=count, rule="it is a whole number from 1", remedy="Correct the plan")
    for index, stage in enumerate(plan.stages):
        counts = [*stage.vocabulary, *(n for v in (stage.heads, stage.mlp_columns) for c in v.values() for n in c)]
        weights = (*stage.tokens, *stage.rows)
        odd: list[object] = [count for count in counts if not isinstance(count, int)]
        odd += [weight for weight in weights if not isinstance(weight, int | float)]
        if odd:
            raise UserError(
                f"stage {index} shares", value=odd, rule="heads, columns and vocabulary rows are whole numbers, "
                "token and row weights are numbers", remedy="Correct the shares",
            )  # fmt: skip


def _check_chunks(plan: Plan, spec: ModelSpec) -> None:
    weights = plan.token_chunks
    odd = [weight for weight in weights if not isinstance(weight, int | float) or not 0 <= weight < inf]
    if odd or (weights and not any(weights)):
        raise UserError(
            "plan token_chunks", value=list(weights), rule="one finite weight of zero or more for each chunk, not all "
            "zero", remedy="Correct the weights, or leave them out",
        )  # fmt: skip
    if weights and spec.enc is not None:
        raise UserError(
            "plan token_chunks", value=f"{len(weights)} chunks for {spec.family}",
            rule="only a causal decoder without an encoder can take a prompt chunk by chunk",
            remedy="Leave token_chunks out",
        )  # fmt: skip


def _check_stage(where: str, stage: Stage, spec: ModelSpec) -> None:
    modes = stage.modes
    if modes == PRESETS["single"] and stage.size > 1:
        raise UserError(
            where, value=f"single over {stage.size} devices", rule="a single stage has one device",
            remedy="Use parallel=data, tensor, sequence or hybrid, or one stage per device (parallel=pipeline)",
        )  # fmt: skip
    tokens = modes.connective == Connective.tokens
    split = Block.tensor in (modes.attention, modes.mlp) or Table.vocabulary in (modes.embedding, modes.head)
    if (modes.attention == Block.sequence and not tokens) or modes.mlp == Block.sequence:
        raise UserError(
            f"{where} modes", value=modes.name, rule="attention by sequence needs connective blocks by tokens, "
            "and an MLP is local or tensor", remedy="Set connective: tokens or attention: tensor",
        )  # fmt: skip
    if (modes.connective == Connective.rows and split) or (
        tokens and stage.size > 1 and modes.attention == Block.local
    ):
        raise UserError(
            f"{where} modes", value=modes.name, rule="a block works on what its connective block hands it",
            remedy="With connective: rows every block is local; with tokens attention is sequence or tensor",
        )  # fmt: skip
    stacks = {stack_of(unit) for unit in stage.units if is_layer(unit)}
    for name, stack in spec.stacks.items():
        if name in stacks and modes.attention == Block.tensor:
            heads = stage.heads.get(name, ())
            _check_sum(f"{where} {name} heads", heads, stage.size, stack.heads)
            uneven = [count for count in heads if count % stack.group]
            if uneven:
                raise UserError(
                    f"{where} {name} heads", value=list(heads),
                    rule=f"{stack.group} query heads share one key-value head and stay together",
                    remedy=f"Give multiples of {stack.group} (zero is allowed)",
                )  # fmt: skip
        if name in stacks and modes.mlp == Block.tensor:
            _check_sum(f"{where} {name} mlp_columns", stage.mlp_columns.get(name, ()), stage.size, stack.mlp_columns)
    embeds = any(unit.endswith(".embed") for unit in stage.units)
    heads_here = "head" in stage.units and spec.head.vocabulary
    split = (embeds and modes.embedding == Table.vocabulary) or (heads_here and modes.head == Table.vocabulary)
    if split or stage.vocabulary:
        vocabulary = spec.stacks[spec.last].embedding.vocabulary
        _check_sum(f"{where} vocabulary", stage.vocabulary, stage.size, vocabulary)
    for what, weights, needed in (("tokens", stage.tokens, tokens), ("rows", stage.rows, modes.connective == "rows")):
        if needed and (len(weights) != stage.size or min(weights) < 0 or sum(weights) <= 0):
            raise UserError(
                f"{where} {what}", value=list(weights),
                rule=f"one weight of zero or more for each of {stage.size} devices, not all zero",
                remedy=f"Correct {what}",
            )  # fmt: skip


def _check_sum(what: str, counts: Sequence[int], size: int, total: int) -> None:
    if len(counts) != size or min(counts, default=-1) < 0 or sum(counts) != total:
        raise UserError(
            what, value=f"{list(counts)} (sum {sum(counts)})",
            rule=f"{size} counts of zero or more that sum to {total}", remedy="Correct the shares",
        )  # fmt: skip
