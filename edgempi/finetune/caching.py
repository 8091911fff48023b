"""The activation cache inside a run: filled while the backbone runs, read ahead in the order of the epochs after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.cache.key import sample_id
from edgempi.finetune.cache.prefetch import Prefetch
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.order import batches
from edgempi.finetune.data.samples import Sample
from edgempi.finetune.minibatch import Reader
from edgempi.plan.plan import Plan
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.actions import microbatch_spans, own_rows
from edgempi.plan.training.technique import Tuning


def cached_units(spec: ModelSpec, tuning: Tuning) -> tuple[str, ...]:
    """The units whose activations the side network reads, of all devices, in order (see `Trunk.cached_units`)."""
    return tuple(unit for unit in spec.units if not unit.endswith(".norm") and (unit != "head" or tuning.merge))


class RunCache:
    """One device's cache and the samples of its run.

    Args:
        spec: the model.
        cache: of this device; the run closes it.
        samples: all of them, as epochs number them.
        ahead: how many are read ahead of their use.
        dtype: in which activations are given.
    """

    def __init__(
        self, spec: ModelSpec, cache: ActivationCache, samples: Sequence[Sample], ahead: int, dtype: torch.dtype
    ) -> None:
        self.cache = cache
        self.ids = tuple(_identity(sample) for sample in samples)
        """What the cache calls each sample."""
        self._spec, self._ahead, self._dtype = spec, ahead, dtype
        self._by_key = {sample.key: number for sample, number in zip(samples, self.ids, strict=True)}
        self._prefetch: Prefetch | None = None

    def keep(self, rows: Rows, kept: Mapping[str, Tensor]) -> None:
        """Put activations (B, S, D) by unit, without their padding."""
        for row, key in enumerate(rows.keys):
            self.cache.put(
                self._by_key[key], {unit: x_BSD[row, : self._length(rows, unit, row)] for unit, x_BSD in kept.items()}
            )

    def begin(self, numbers: np.ndarray, size: int, plan: Plan, rank: int, units: Sequence[str]) -> None:
        """Start to read ahead what this device will ask for.

        Args:
            numbers: of the samples to come, in order.
            size: rows of a mini-batch.
            plan: under which they are worked on.
            rank: this one.
            units: that it reads.
        """
        self.rest()
        if units:
            own = (self.ids[number] for number in own_numbers(numbers, size, plan, rank))
            self._prefetch = Prefetch(self.cache, own, self._ahead, units)

    def read(self, rows: Rows) -> Reader:
        """What gives the activations of the next rows by unit, padded with zeros.

        Raises:
            UserError: a sample is there no more.
        """
        assert self._prefetch is not None, "begin comes first"
        found = self._prefetch.take(len(rows.keys))
        wanted = [self._by_key[key] for key in rows.keys]
        assert [one.sample for one in found] == wanted, "rows are asked for in the order that was announced"
        if not all(found):
            raise UserError(
                f"activation cache {self.cache.folder}", value=f"{sum(not one for one in found)} samples are lost",
                rule="cached epochs find all samples there", remedy="Resume the run: what is lost is computed again",
            )  # fmt: skip
        layers = [one.tensors(self._dtype) for one in found]

        def reader(unit: str) -> Tensor:
            S = rows.batch.ids(self._stack(unit)).shape[1]
            return torch.stack([F.pad(x[unit], (0, 0, 0, S - len(x[unit]))) for x in layers])

        return reader

    def rest(self) -> None:
        """Stop reading ahead."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None

    def _stack(self, unit: str) -> str:
        return self._spec.last if unit == "head" else unit.partition(".")[0]

    def _length(self, rows: Rows, unit: str, row: int) -> int:
        stack = self._stack(unit)
        padding = rows.batch.padding(stack)
        return rows.batch.ids(stack).shape[1] if padding is None else int(padding[row].sum())


def own_numbers(numbers: np.ndarray, size: int, plan: Plan, rank: int) -> Iterator[int]:
    """The samples of a device, in the order of its forward passes."""
    stage = plan.stage_of(rank)
    for batch in batches(numbers, size):
        for microbatch in microbatch_spans(len(batch), plan.microbatches):
            yield from batch[slice(*own_rows(stage, rank, microbatch))].tolist()


def _identity(sample: Sample) -> int:
    """What a sample's activations depend on beside the cache's key: its token ids."""
    parts = (sample.enc_ids, sample.dec_ids, sample.types)
    return sample_id(*(part.tolist() for part in parts if part is not None))
