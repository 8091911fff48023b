"""What is learned from the rows: classes, a score, or tokens; the loss as a sum, so that unequal shares weigh right.

Which tokens a head reads is settled before it runs: logits over a vocabulary are worked out where a label stands, and
nowhere else.

Shapes: B rows, S tokens, N places that are read, V rows of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.samples import IGNORED
from edgempi.finetune.data.task import HIDDEN
from edgempi.plan.spec import Head, ModelSpec


@dataclass(frozen=True)
class Loss:
    """What the stage with the head gives.

    Attributes:
        total: the sum over the rows, or over their learned tokens; a scalar that gradients flow from.
        outputs: what was answered, detached: logits (B, V) of classes, scores (B,), or for tokens the likeliest id at
            every learned place and -100 elsewhere, (B, S), laid out as the labels.
    """

    total: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Places:
    """Where the head reads, and what it should say: row, token and target of each, (N,)."""

    rows: Tensor
    tokens: Tensor
    targets: Tensor

    def of(self, x_BSD: Tensor) -> Tensor:
        """The tokens that are read, (N, D)."""
        return x_BSD[self.rows, self.tokens]


def places(spec: ModelSpec, rows: Rows) -> Places:
    """What the head reads of these rows: of each its one token, or those with a label.

    In a decoder alone, a place is held against the next one's label.
    """
    if rows.labels.ndim == 2:
        shift = _shift(spec)
        wanted = rows.labels[:, shift:]
        row, token = (wanted != IGNORED).nonzero(as_tuple=True)
        return Places(row, token, wanted[row, token])
    ids, padding = rows.batch.ids(spec.last), rows.batch.padding(spec.last)
    token = torch.zeros(len(ids), dtype=torch.int64)
    if spec.head.select == "last":
        token = token + ids.shape[1] - 1 if padding is None else padding.sum(dim=1) - 1
    return Places(torch.arange(len(ids)), token, rows.labels)


def loss_of(spec: ModelSpec, rows: Rows, read: Places, logits_NV: Tensor) -> Loss:
    """The loss of what the head said at `read`; rows whose label is hidden add nothing."""
    logits = logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV
    if is_score(spec.head):
        scores = logits[:, 0]
        # A hidden score is an integer; a score of -1 is none.
        known = (read.targets != HIDDEN) | read.targets.is_floating_point()
        total = F.mse_loss(scores[known], read.targets[known].to(scores.dtype), reduction="sum")
        return Loss(total, scores.detach())
    ignored = IGNORED if rows.labels.ndim == 2 else HIDDEN
    total = F.cross_entropy(logits, read.targets, reduction="sum", ignore_index=ignored)
    if rows.labels.ndim == 1:
        return Loss(total, logits.detach())
    return Loss(total, _laid_out(spec, rows, read, logits.detach().argmax(dim=-1)))


def no_loss(spec: ModelSpec, rows: Rows, hidden_ND: Tensor) -> Loss:
    """The loss where there is nothing to learn: zero, and a graph for the gradients of zero."""
    if rows.labels.ndim == 2:
        return Loss(hidden_ND.sum(), torch.full_like(rows.labels, IGNORED))
    shape = (0,) if is_score(spec.head) else (0, spec.head.rows)
    return Loss(hidden_ND.sum(), hidden_ND.detach().new_zeros(shape))


def is_score(head: Head) -> bool:
    """Whether a head gives one number, which is a score."""
    return head.rows == 1 and not head.vocabulary


def _shift(spec: ModelSpec) -> int:
    return 1 if spec.enc is None else 0


def _laid_out(spec: ModelSpec, rows: Rows, read: Places, ids_N: Tensor) -> Tensor:
    answers = torch.full_like(rows.labels, IGNORED)
    answers[read.rows, read.tokens + _shift(spec)] = ids_N
    return answers
