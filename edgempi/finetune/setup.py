"""What a run of fine-tuning is, in one value that every rank has alike but for the checkpoint's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgempi.finetune.rhythm import CACHED, TRAIN
from edgempi.finetune.techniques import Initial
from edgempi.finetune.techniques.head import TaskHead
from edgempi.plan.plan import Plan, Program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.measured import OPTIMIZER_COPIES, Kept
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.training.technique import Tuning
from edgempi.plan.workload import Workload


@dataclass(frozen=True)
class Setup:
    """What a run is; the same on every rank but for `folder`.

    Attributes:
        folder: of the checkpoint, on this host.
        spec: the model, with the head that is fine-tuned.
        task: that head.
        tuning: the technique.
        initial: how a side network starts.
        dtype: what the backbone computes in.
        seed: of the order of rows, and of what training begins with.
        program: the plans, `train` and maybe `cached`.
        depths: of each plan, the microbatches that may be under way at each stage.
        continuation: what the later epochs do.
        work: tokens of a row.
        kept: in what form things are kept.
        kinds: what the optimizer keeps for each parameter.
        bucket_bytes: see `Executor`.
    """

    folder: Path
    spec: ModelSpec
    task: TaskHead
    tuning: Tuning
    initial: Initial
    dtype: torch.dtype
    seed: int
    program: Program
    depths: Mapping[str, tuple[int, ...]]
    continuation: Continuation
    work: Workload
    kept: Kept
    kinds: Sequence[str]
    bucket_bytes: int

    @property
    def first(self) -> Plan:
        """The plan of `train`."""
        return self.program.phases[TRAIN]

    @property
    def second(self) -> Plan:
        """The plan of the later epochs."""
        return self.program.phases.get(CACHED, self.first)

    def costs(self) -> Costs:
        """The layers' bytes; times are the parent's affair."""
        layers = layer_bytes(self.spec, self.tuning, self.work, self.kept.weight_dtype, self.kept.cache_bytes)
        return Costs(pieces(self.spec), layers, (), OPTIMIZER_COPIES[self.kept.optimizer])
