"""Trained state on its way between the device that keeps a run's files and those that train.

Tensors travel one by one in an order that every rank works out (`checkpoint/places.py`); rank 0 holds none of the
others' for longer than it takes to write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.finetune.checkpoint import Gathered, gathering, load_optimizer, load_trained, optimizer_names, spreading
from edgempi.plan.plan import Plan
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Shape, Tuning, trained_shapes

Written = TypeVar("Written")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cargo:
    """What a run trains, whoever holds it.

    Attributes:
        units: the trained parameters of each unit.
        shapes: of all, by name.
        kinds: what the optimizer keeps for each.
        dtype: of all.
    """

    units: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, Shape]
    kinds: Sequence[str]
    dtype: torch.dtype

    @classmethod
    def of(cls, spec: ModelSpec, tuning: Tuning, kinds: Sequence[str], dtype: torch.dtype) -> Cargo:
        """What training a model takes."""
        by_unit = {unit: trained_shapes(spec, unit, tuning) for unit in spec.units}
        shapes = {name: shape for found in by_unit.values() for name, shape in found.items()}
        return cls({unit: tuple(found) for unit, found in by_unit.items()}, shapes, kinds, dtype)


def collect(
    world: World, plan: Plan, cargo: Cargo, own: State, kept: State, write: Callable[[State, State], Written]
) -> Written | None:
    """Bring all trained tensors, then what the optimizer keeps for them, to rank 0. Collective: every rank.

    Args:
        world: all ranks.
        plan: under which they are trained.
        cargo: what there is.
        own: what this rank trains.
        kept: what its optimizer keeps; not asked for where `cargo.kinds` are none.
        write: called on rank 0 with both; takes each tensor once, in order.

    Returns:
        What `write` returned; None on other ranks.
    """
    passage = gathering(plan, cargo.units)
    names = [transfer.name for transfer in passage]
    both = {**own, **kept}
    if world.leads:
        source = {transfer.name: transfer.source for transfer in passage}

        def fetch(full: str) -> Tensor:
            name = full if full in cargo.shapes else full.partition(".")[2]
            if not source[name]:
                return both[full].detach()
            buffer = torch.empty(cargo.shapes[name], dtype=cargo.dtype)
            world.receive(buffer, source[name])
            return buffer

        found = write(Gathered(names, fetch), Gathered(optimizer_names(names, cargo.kinds), fetch))
    else:
        mine = [transfer.name for transfer in passage if transfer.source == world.rank]
        for full in (*mine, *optimizer_names(mine, cargo.kinds)):
            world.send(both[full].detach().contiguous(), 0)
        found = None
    world.barrier()
    return found


def spread(world: World, plan: Plan, cargo: Cargo, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint from rank 0 to all that train. Collective: every rank.

    Args:
        world: all ranks.
        plan: under which training goes on.
        cargo: what there is.
        folder: the checkpoint's, on rank 0.

    Returns:
        What this rank trains, and what its optimizer kept.
    """
    passage = spreading(plan, cargo.units)
    trained: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    read: tuple[str, dict[str, Tensor]] = ("", {})
    for transfer in passage:
        name = transfer.name
        names = (name, *optimizer_names([name], cargo.kinds))
        if world.leads and read[0] != name:
            read = name, {**load_trained(folder, names[:1]), **load_optimizer(folder, names[1:])}
        for full in names:
            if world.leads and transfer.target:
                world.send(read[1][full], transfer.target)
            elif transfer.target == world.rank:
                value = read[1][full] if world.leads else torch.empty(cargo.shapes[name], dtype=cargo.dtype)
                if not world.leads:
                    world.receive(value, 0)
                (trained if full == name else kept)[full] = value
    world.barrier()
    return trained, kept
