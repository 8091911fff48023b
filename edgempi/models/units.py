"""Units by their names: what a stage is a run of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from edgempi.models.block import Block
from edgempi.models.ends import Embed, Head
from edgempi.models.weights import Weights
from edgempi.ops.norm import Norm

Unit: TypeAlias = Block | Embed | Norm | Head


def load_units(weights: Weights, units: Iterable[str]) -> dict[str, Unit]:
    """Load the units by name, in order."""
    return {unit: _load(weights, unit) for unit in units}


def _load(weights: Weights, unit: str) -> Unit:
    stack, _, part = unit.partition(".")
    match part:
        case "embed":
            return Embed(weights, stack)
        case "norm":
            return weights.norm(unit, weights.spec.stacks[stack])
        case "":
            return Head(weights)
        case _:
            return Block(weights, stack, unit)
