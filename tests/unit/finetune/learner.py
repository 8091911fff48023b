"""A small learner in the place of a model: it names one of seven tokens, in float64, its rows shared over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.comm import World
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.order import rows_of_ranks
from edgempi.finetune.data.samples import IGNORED, Sample
from edgempi.finetune.picked import Data
from edgempi.plan.apportion import Span

WIDTH, VOCABULARY, PAD = 3, 7, 0


def samples(count: int) -> list[Sample]:
    """Rows of 2 to 5 tokens, of which some are not learned."""
    random = np.random.default_rng(4)
    found = []
    for number in range(count):
        ids = random.integers(1, VOCABULARY, 2 + number % 4).astype(np.int32)
        labels = ids[::-1].copy()
        labels[: number % 2] = IGNORED
        found.append(Sample(f"{number:032x}", labels, enc_ids=ids))
    return found


def data(count: int = 11, size: int = 3) -> Data:
    """The samples as mini-batches."""
    return Data(samples(count), size, PAD)


def fresh() -> dict[str, Tensor]:
    """What it starts with."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"table.weight": (VOCABULARY, WIDTH), "out.weight": (WIDTH, VOCABULARY), "out.bias": (VOCABULARY,)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


@dataclass(frozen=True)
class Found:
    """What a rank knows of a mini-batch."""

    loss_sum: float
    outputs: tuple[tuple[Span, Tensor], ...] = ()


@dataclass
class Learner:
    """An executor: gradients go to everybody by control messages.

    Attributes:
        weights: of the ranks' rows.
        poisoned: the mini-batches, counted from 0, whose loss is NaN.
        spoiled: those with a gradient that is.
        seen: rows and targets of the mini-batches so far.
    """

    world: World
    tensors: dict[str, Tensor]
    weights: tuple[float, ...] = (1.0,)
    poisoned: tuple[int, ...] = ()
    spoiled: tuple[int, ...] = ()
    seen: list[tuple[int, int]] = field(default_factory=list)

    def step(
        self, rows: int, rows_of: Callable[[Span], Rows], targets: int, read: Any = None, keep: Any = None
    ) -> Found:
        """See `course.Executor`."""
        self.seen.append((rows, targets))
        for tensor in self.tensors.values():
            tensor.grad = torch.zeros_like(tensor)
        given = rows_of(rows_of_ranks(rows, self.weights)[self.world.rank])
        loss = self._loss(given)
        if len(given.labels):
            (loss / max(1, targets)).backward()
        for tensor in self.tensors.values():
            assert tensor.grad is not None
            parts = self.world.all_gather_json(tensor.grad.tolist())
            tensor.grad = torch.stack([torch.tensor(part, dtype=torch.float64) for part in parts]).sum(0)
        if len(self.seen) - 1 in self.spoiled:
            tensor.grad[0] = math.nan
        bad = len(self.seen) - 1 in self.poisoned and self.world.rank == self.world.size - 1
        return Found(math.nan if bad else float(loss.detach()))

    def evaluate(self, rows: int, rows_of: Callable[[Span], Rows], read: Any = None, keep: Any = None) -> Found:
        """See `evaluate.Executor`: the likeliest ids at learned places, as `loss.Loss.outputs`."""
        span = rows_of_ranks(rows, self.weights)[self.world.rank]
        given = rows_of(span)
        if not len(given.labels):
            return Found(0.0)
        with torch.no_grad():
            said = self._logits(given).argmax(dim=-1).masked_fill(given.labels == IGNORED, IGNORED)
            return Found(float(self._loss(given)), ((span, said),))

    def _logits(self, given: Rows) -> Tensor:
        assert given.batch.enc_ids is not None
        return self.tensors["table.weight"][given.batch.enc_ids] @ self.tensors["out.weight"] + self.tensors["out.bias"]

    def _loss(self, given: Rows) -> Tensor:
        if not len(given.labels):
            return torch.zeros((), dtype=torch.float64)
        logits = self._logits(given).flatten(0, 1)
        return F.cross_entropy(logits, given.labels.flatten(), reduction="sum", ignore_index=IGNORED)
