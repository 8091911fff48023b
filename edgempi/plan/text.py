"""A Program as YAML that a person can read, edit and give back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from edgempi.errors import UserError
from edgempi.plan.plan import PRESETS, Block, Connective, Modes, Plan, Program, Stage, Table

FORMAT = "edgempi program 1"


def program_to_dict(program: Program) -> dict[str, Any]:
    """Plain JSON types; phases with equal plans are written once more, so that each can be edited alone."""
    return {"format": FORMAT, "phases": {name: _plan_to_dict(plan) for name, plan in program.phases.items()}}


def program_from_dict(data: Mapping[str, Any]) -> Program:
    """The program that `program_to_dict` described; a `UserError` says what an edited one lacks."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise UserError(
            "program file", value=found, rule=f"its first line says format: {FORMAT}",
            remedy="Write one with edgempi plan task.save=program.yaml",
        )  # fmt: skip
    try:
        return Program({name: _plan_from_dict(plan) for name, plan in data["phases"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            "program file", value=f"{type(error).__name__}: {error}", rule="phases hold plans, plans hold stages",
            remedy="Compare it with one that edgempi plan task.save=program.yaml writes",
        ) from error  # fmt: skip


def program_to_yaml(program: Program) -> str:
    """The text of a program file."""
    return yaml.safe_dump(program_to_dict(program), sort_keys=False, default_flow_style=None, width=110)


def program_from_yaml(text: str) -> Program:
    """The program of a program file."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise UserError("program file", value=first, rule="it is YAML", remedy="Correct the file") from error
    return program_from_dict(data)


def _plan_to_dict(plan: Plan) -> dict[str, Any]:
    return {
        "weight_dtype": plan.weight_dtype,
        "wire_dtype": plan.wire_dtype,
        "microbatches": plan.microbatches,
        "column_blocks": plan.column_blocks,
        "overlap": plan.overlap,
        "subtiles": plan.subtiles,
        "token_chunks": list(plan.token_chunks),
        "version": plan.version,
        "stages": [_stage_to_dict(stage) for stage in plan.stages],
    }


def _stage_to_dict(stage: Stage) -> dict[str, Any]:
    modes = stage.modes.name
    spelt = {kind: getattr(stage.modes, kind).value for kind in ("connective", "attention", "mlp", "embedding", "head")}
    shares: dict[str, Any] = {
        "heads": {stack: list(counts) for stack, counts in stage.heads.items()},
        "mlp_columns": {stack: list(counts) for stack, counts in stage.mlp_columns.items()},
        "vocabulary": list(stage.vocabulary),
        "tokens": list(stage.tokens),
        "rows": list(stage.rows),
    }
    return {
        "devices": list(stage.devices),
        "modes": modes if modes in PRESETS else spelt,
        "units": list(stage.units),
        **{what: share for what, share in shares.items() if share},
    }


def _plan_from_dict(data: Mapping[str, Any]) -> Plan:
    fields = {key: value for key, value in data.items() if key != "stages"}
    fields["token_chunks"] = tuple(fields.get("token_chunks", ()))
    return Plan(stages=tuple(_stage_from_dict(stage) for stage in data["stages"]), **fields)


def _stage_from_dict(data: Mapping[str, Any]) -> Stage:
    data = dict(data)
    modes = data.pop("modes")
    per_stack = {what: data.pop(what, {}) for what in ("heads", "mlp_columns")}
    return Stage(
        units=tuple(data.pop("units")),
        devices=tuple(data.pop("devices")),
        modes=PRESETS[modes] if isinstance(modes, str) else _modes_from_dict(modes),
        heads={stack: tuple(counts) for stack, counts in per_stack["heads"].items()},
        mlp_columns={stack: tuple(counts) for stack, counts in per_stack["mlp_columns"].items()},
        **{what: tuple(share) for what, share in data.items()},
    )


def _modes_from_dict(data: Mapping[str, str]) -> Modes:
    return Modes(
        Connective(data["connective"]), Block(data["attention"]), Block(data["mlp"]),
        Table(data["embedding"]), Table(data["head"]),
    )  # fmt: skip
