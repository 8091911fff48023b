"""Where the model's own weights come from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.weights import Weights
from edgempi.ops.linear import PLAIN
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.share import DeviceShare, device_share
from edgempi.plan.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """A checkpoint, open while it is read.

    Attributes:
        checkpoint: holds the model.
        fresh: parameters that it does not hold, and that begin anew: those of a new task head.
    """

    checkpoint: Checkpoint
    fresh: Collection[str] = ()

    def weights(self, spec: ModelSpec, units: Collection[str], dtype: torch.dtype) -> Weights:
        """The weights of units, unpacked, read when they are asked for."""
        return Weights(self.checkpoint, family_named(spec.family), spec, whole_share(spec, units), PLAIN, dtype)


def whole_share(spec: ModelSpec, units: Collection[str]) -> DeviceShare:
    """The share of a device that holds units whole."""
    plan = Plan((Stage(tuple(units), (0,), PRESETS["single"]),))
    return device_share(plan, spec, 0)
