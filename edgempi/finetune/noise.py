"""A model of any size on weights without meaning, for measuring: a checkpoint that is nowhere, read like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgempi.finetune.techniques import Initial
from edgempi.finetune.trunk import Trunk, build_trunk
from edgempi.models.allocator import returning
from edgempi.models.checkpoint import Checkpoint, Entry
from edgempi.models.families import family_named
from edgempi.plan.apportion import Span
from edgempi.plan.share import inventory
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Tuning

NOISE = 2**20
"""Random elements that all weights repeat: drawing each anew would take longer than measuring."""
DEVIATION = 0.02


class Noise(Checkpoint):
    """All weights of a model, made when they are read.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.folder, self.header_bytes, self.data_bytes = Path("noise"), 0, 0
        self._files = {}
        self.entries = {}
        family = family_named(spec.family)
        for parameter in (parameter for unit in spec.units for parameter in inventory(spec, unit)):
            source = family.source(parameter.name)
            shape = [parameter.shape[0] * source.part[1], *parameter.shape[1:]]
            name = source.names[0]
            stored = tuple(reversed(shape)) if source.transposed else tuple(shape)
            self.entries[name] = Entry(name, self.folder, "F32", stored, 0)
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(NOISE, generator=generator).mul_(DEVIATION)

    def read(self, name: str, dtype: torch.dtype, dim: int = 0, span: Span | None = None) -> Tensor:
        """Noise of the slice's shape."""
        shape = list(self.entries[name].shape)
        if span is not None:
            shape[dim] = span[1] - span[0]
        made = torch.empty(shape, dtype=dtype)
        flat = made.view(-1)
        for start in range(0, flat.numel(), NOISE):
            part = flat[start : start + NOISE]
            part.copy_(self._noise[: part.numel()])
        return made


def noise_trunk(
    spec: ModelSpec, units: Sequence[str], tuning: Tuning, dtype: torch.dtype, backbone: bool = True
) -> Trunk:
    """Units of a model, with what a technique trains beside them, on weights without meaning."""
    with returning(), Noise(spec) as checkpoint:
        return build_trunk(checkpoint, spec, units, tuning, dtype, initial=Initial.random, backbone=backbone)
