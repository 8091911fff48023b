"""The gradients of one device: where they lie, and their sums over devices, begun while the backward pass goes on.

The gradients of a bucket (`plan/training/buckets.py`) lie one after another in one buffer, which each tensor's `.grad`
is a view of: automatic differentiation adds to it in place, and the all-reduce works on it in place. In the backward
pass of a device's last microbatch a bucket's sum begins as soon as its last gradient is there, and is driven from the
hooks of those that follow. A device without rows adds zeros.

Which tensors a bucket holds follows from the planner's names: those of its layers' units but for the ones that several
layers share, which have buckets of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgempi.comm import Group
from edgempi.finetune.sums import RingSum
from edgempi.plan.training.buckets import Bucket
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.sizes import GRADIENT_BYTES

Devices = tuple[int, ...]


class Trained(Protocol):
    """The trained tensors of one device: leaves that require grad."""

    @property
    def by_unit(self) -> Mapping[str, Mapping[str, Tensor]]:
        """By unit and name; one that several units share is the same tensor in each."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Each once, in order."""


def named(trained: Trained, costs: Costs, layers: tuple[int, int], tables: Sequence[str]) -> tuple[str, ...]:
    """The names of a device's trained tensors that belong to layers alone, and of the given shared ones.

    Args:
        trained: of the device.
        costs: what the planner knows of the layers.
        layers: a range of them, all of the device.
        tables: names of tensors that several layers share.
    """
    shared, by_unit = {name for layer in costs.layers for name in layer.tables}, trained.by_unit
    own = (name for unit in costs.units(layers) for name in by_unit.get(unit, {}) if name not in shared)
    return (*dict.fromkeys(own), *tables)


class Gradients:
    """Made once; for each mini-batch `clear`, backward passes, `last` before the last of them, `begin` and `finish`.

    Args:
        trained: the device's tensors.
        costs: what the planner knows of the layers.
        reduced: the device's buckets in the order in which they are begun.
        groups: by the devices of a bucket, the group of these ranks.
        meanwhile: called from every hook, to drive what else is under way.

    Raises:
        RuntimeError: a bucket's tensors are not of the bytes that the planner counted.
    """

    def __init__(
        self,
        trained: Trained,
        costs: Costs,
        reduced: Sequence[Bucket],
        groups: Mapping[Devices, Group],
        meanwhile: Callable[[], None],
    ) -> None:
        self._tensors, self._groups, self._meanwhile = dict(trained.tensors), groups, meanwhile
        self._names = {bucket: named(trained, costs, bucket.layers, bucket.tables) for bucket in reduced}
        self._numbers: dict[Bucket, int] = {}
        self._flats: dict[Bucket, Tensor] = {}
        self._views: dict[str, Tensor] = {}
        numbers: Counter[Devices] = Counter()
        for bucket, names in self._names.items():
            self._flats[bucket] = self._lay_out(bucket, names)
            self._numbers[bucket] = numbers[bucket.devices]
            numbers[bucket.devices] += 1
        self._bucket = {name: bucket for bucket, names in self._names.items() for name in names}
        self._missing: dict[Bucket, set[str]] = {}
        self._sums: dict[Bucket, RingSum] = {}
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(self._hook(name)) for name, tensor in self._tensors.items()
        ]

    def clear(self) -> None:
        """Before a mini-batch: no gradients yet."""
        self._sums, self._missing = {}, {}
        for flat in self._flats.values():
            flat.zero_()
        for name, tensor in self._tensors.items():
            tensor.grad = self._views.get(name)

    def last(self) -> None:
        """The backward pass that comes now is the device's last: sums begin in it."""
        self._missing = {bucket: set(names) for bucket, names in self._names.items()}

    def begin(self, bucket: Bucket) -> None:
        """Begin a bucket's sum, unless it has begun; no gradient of it is to come."""
        if bucket not in self._sums:
            post = self._groups[bucket.devices].post
            self._sums[bucket] = RingSum(post, self._flats[bucket], self._numbers[bucket], f"sum {bucket.name}")

    def poll(self) -> None:
        """Drive the sums that are under way."""
        for ring in self._sums.values():
            if not ring.complete:
                ring.poll()

    def finish(self) -> None:
        """Wait until all sums are complete; tensors that no gradient reached have zeros.

        Raises:
            StuckError: a wait has passed its bound.
        """
        for ring in self._sums.values():
            ring.finish(self._meanwhile)
        for group in self._groups.values():
            group.drain()
        for tensor in self._tensors.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _lay_out(self, bucket: Bucket, names: Sequence[str]) -> Tensor:
        """One buffer for a bucket, with a view for each of its tensors."""
        tensors = [self._tensors[name] for name in names if name in self._tensors]
        elements = sum(tensor.numel() for tensor in tensors)
        if elements * GRADIENT_BYTES != bucket.nbytes:
            raise RuntimeError(
                f"gradients of {bucket.name}: {elements} elements in {', '.join(names)}, "
                f"where the plan has {bucket.nbytes // GRADIENT_BYTES}"
            )
        flat = torch.zeros(elements, dtype=tensors[0].dtype)
        for name, view in zip(names, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            self._views[name] = view.view(self._tensors[name].shape)
        return flat

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def landed(_: Tensor) -> None:
            bucket = self._bucket.get(name)
            missing = self._missing.get(bucket) if bucket is not None else None
            if bucket is not None and missing is not None:
                missing.discard(name)
                if not missing:
                    self.begin(bucket)
            self._meanwhile()

        return landed
