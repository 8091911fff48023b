"""What is to be measured of training: which layers, with how many rows, and what they are given.

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.optim import Optimizing
from edgempi.finetune.trunk import SIDE
from edgempi.parallel.batch import Batch
from edgempi.plan.flow import carried
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.measured import layer_kinds
from edgempi.plan.training.memory import stage_memory
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.training.technique import Tuning
from edgempi.plan.workload import Workload
from edgempi.profiling.compute import COLD_BYTES

COUNTS = (1, 2, 4, 8)
"""Rows of a pass."""


@dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
        spec: the model.
        tuning: the technique.
        work: tokens of a row.
        optimizing: the optimizer whose step is timed.
        dtype: of frozen weights and activations.
        room_bytes: memory that may be taken, above what is resident.
        seconds: how long to measure in all, beyond `LEAST_ROUNDS` that take longer.
        counts: rows of a pass, ascending; those that memory does not hold are left out.
    """

    spec: ModelSpec
    tuning: Tuning
    work: Workload
    optimizing: Optimizing
    dtype: torch.dtype
    room_bytes: float
    seconds: float = 30.0
    counts: Sequence[int] = COUNTS

    @property
    def phases(self) -> dict[str, bool]:
        """By name, whether the backbone's activations come from the cache."""
        return {"train": False} if self.tuning.crosses_backbone else {"train": False, "cached": True}


def random_rows(spec: ModelSpec, work: Workload, count: int) -> Rows:
    """Rows of random ids, full length, with labels for everything that can have one."""
    generator = torch.Generator().manual_seed(count)

    def ids(name: str) -> Tensor:
        shape = (count, work.of(spec, name))
        return torch.randint(spec.stacks[name].embedding.vocabulary, shape, generator=generator)

    batch = Batch(**{f"{name}_ids": ids(name) for name in spec.stacks})
    head = spec.head
    if head.vocabulary:
        labels = ids(spec.last)
    elif head.rows > 1:
        labels = torch.randint(head.rows, (count,), generator=generator)
    else:
        labels = torch.rand(count, generator=generator)
    return Rows(batch, labels, tuple(str(row) for row in range(count)), labels.numel())


def entering(question: Question, unit: str, count: int, cached: bool) -> dict[str, tuple[int, int, int]]:
    """Shapes of what a run is given that begins with a unit, by name: (B, S, D), in the order of `Trunk.boundary`."""
    spec, tuning = question.spec, question.tuning
    wide, narrow = {}, {}
    for name in carried(spec, unit, False):
        stack = "enc" if name == "memory" else name
        tokens, width = question.work.of(spec, stack), spec.stacks[stack].width
        wide[name] = (count, tokens, width)
        narrow[f"{SIDE}{name}"] = (count, tokens, width // tuning.reduction)
    if tuning.crosses_backbone:
        return wide
    return narrow if cached else wide | narrow


def runs(question: Question, phase: str) -> dict[str, tuple[int, int]]:
    """The layers that are run for each kind: one, or for inner ones as many as are read cold and have room."""
    kinds, costs, most = layer_kinds(question.spec), _costs(question, phase), counts_of(question)[-1]
    found: dict[str, tuple[int, int]] = {}
    for place, kind in enumerate(kinds):
        if kind in found:
            continue
        span = (place, place + 1)
        while kind.endswith(".inner") and kinds[span[1]] == kind:
            wider = (place, span[1] + 1)
            cold = costs.frozen_bytes(span) + costs.trained_bytes(span) >= COLD_BYTES
            if cold or not _fits(question, costs, wider, most):
                break
            span = wider
        found[kind] = span
    return found


def counts_of(question: Question) -> list[int]:
    """The numbers of rows for which there is room with any one layer."""
    costs = _costs(question, "train")
    counts = [
        count
        for count in question.counts
        if all(_fits(question, costs, (place, place + 1), count) for place in range(costs.size))
    ]
    if len(counts) < 2:
        need = max(stage_memory(costs, (place, place + 1), question.counts[1], 1).peak for place in range(costs.size))
        raise UserError(
            "memory to measure in", value=f"{question.room_bytes / 1e6:.0f} MB",
            rule=f"a layer with {question.counts[1]} rows takes {need / 1e6:.0f} MB",
            remedy="Raise the device's budget, or shorten the rows",
        )  # fmt: skip
    return counts


def _fits(question: Question, costs: Costs, layers: tuple[int, int], rows: int) -> bool:
    return stage_memory(costs, layers, rows, 1).peak <= question.room_bytes


def _costs(question: Question, phase: str) -> Costs:
    """The layers' bytes."""
    spec, dtype = question.spec, "bf16" if question.dtype is torch.bfloat16 else "fp32"
    layers = layer_bytes(spec, question.tuning, question.work, dtype, cached=question.phases[phase])
    return Costs(pieces(spec), layers, (), len(question.optimizing.kinds))
