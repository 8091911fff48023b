"""The samples of a run, and those picked for a mini-batch: what they weigh, and how devices get their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgempi.finetune.checkpoint.position import order_fingerprint
from edgempi.finetune.data.collate import Rows, collate
from edgempi.finetune.data.order import batches
from edgempi.finetune.data.samples import Sample
from edgempi.plan.apportion import Span


@dataclass(frozen=True)
class Picked:
    """A mini-batch of B samples; none of them is padded or copied before it is asked for.

    Attributes:
        samples: their numbers, (B,) of int64.
        targets: what they weigh in a mean loss.
        rows_of: the rows at some places of the mini-batch.
    """

    samples: np.ndarray
    targets: int
    rows_of: Callable[[Span], Rows]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.samples)


@dataclass(frozen=True)
class Data:
    """All samples.

    Attributes:
        samples: of one template.
        size: rows of a mini-batch.
        pad: the id to pad with.
    """

    samples: Sequence[Sample]
    size: int
    pad: int

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch; the last may be smaller."""
        return math.ceil(len(self.samples) / self.size)

    def picked(self, order: np.ndarray, skip: int = 0) -> Iterator[Picked]:
        """The mini-batches of an epoch without the first `skip`.

        Args:
            order: numbers of samples as they are to be seen.
            skip: mini-batches that are done.
        """
        for numbers in batches(order, self.size, skip):
            chosen = [self.samples[number] for number in numbers]
            targets = sum(sample.targets for sample in chosen)
            yield Picked(numbers, targets, partial(collate, chosen, self.pad))

    def fingerprint(self, order: np.ndarray) -> str:
        """What an epoch is known by: the content of its samples in their order."""
        return order_fingerprint(int(self.samples[number].key, 16) for number in order)
