"""From samples to padded batches.

Shapes: B rows, S tokens of the longest row at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.data.samples import IGNORED, Sample
from edgempi.parallel.batch import Batch
from edgempi.plan.apportion import Span


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch, padded on the right to the longest of them.

    `labels` is (B, S) of int64 for tokens (-100 where nothing is learned), (B,) of int64 for classes, (B,) of float32
    for scores. `targets` counts what they weigh in the mean loss of the whole batch.
    """

    batch: Batch
    labels: Tensor
    keys: tuple[str, ...]
    targets: int


def collate(samples: Sequence[Sample], pad: int, rows: Span | None = None) -> Rows:
    """The given rows of a batch (all by default; none is legal, and gives tensors without rows).

    Args:
        samples: the whole batch, at least one sample, all of one template.
        pad: the id to pad with; padded places are masked, so any id of the vocabulary will do.
        rows: which of them to take.

    Raises:
        UserError: a sample has other parts than the first.
    """
    first, taken = samples[0], samples[slice(*rows)] if rows else samples
    for sample in taken:
        if _parts(sample) != _parts(first):
            raise UserError(
                f"sample {sample.key}", value=" ".join(map(str, _parts(sample))),
                rule=f"all rows of a batch have {' '.join(map(str, _parts(first)))}",
                remedy="Tokenise all rows with one template and one tokenizer",
            )  # fmt: skip
    enc, enc_padding = _padded([s.enc_ids for s in taken], pad, first.enc_ids)
    dec, dec_padding = _padded([s.dec_ids for s in taken], pad, first.dec_ids)
    types, _ = _padded([s.types for s in taken], 0, first.types)
    if first.labels.ndim:
        labels, _ = _padded([s.labels for s in taken], IGNORED, first.labels)
        assert labels is not None
    else:
        dtype = torch.float32 if first.labels.dtype.kind == "f" else torch.int64
        labels = torch.tensor([s.labels.item() for s in taken], dtype=dtype)
    batch = Batch(enc, enc_padding, dec, dec_padding, types)
    return Rows(batch, labels, tuple(s.key for s in taken), sum(s.targets for s in taken))


def _parts(sample: Sample) -> tuple[str, ...]:
    """What a sample consists of."""
    present = [name for name in ("enc_ids", "dec_ids", "types") if getattr(sample, name) is not None]
    return (*present, f"labels:{sample.labels.ndim}{sample.labels.dtype.kind}")


def _padded(
    parts: Sequence[np.ndarray | None], fill: int, first: np.ndarray | None
) -> tuple[Tensor | None, Tensor | None]:
    """Rows (B, S) of int64, and which places are real (B, S), None if all are."""
    if first is None:
        return None, None
    found = [part for part in parts if part is not None]
    lengths = torch.tensor([len(part) for part in found], dtype=torch.int64)
    longest = int(lengths.max()) if found else 0
    padded = torch.full((len(found), longest), fill, dtype=torch.int64)
    for row, part in zip(padded, found, strict=True):
        row[: len(part)] = torch.from_numpy(part)
    real = torch.arange(longest)[None] < lengths[:, None]
    return padded, None if bool(real.all()) else real
