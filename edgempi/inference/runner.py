"""Load a rank's share of a model and run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.models.allocator import returning
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.kv_cache import KVCache
from edgempi.models.units import load_units
from edgempi.models.weights import TORCH_DTYPES, Weights
from edgempi.ops.linear import Route, pick_route
from edgempi.parallel.batch import Batch
from edgempi.parallel.choose import settle_overlap
from edgempi.parallel.executor import Executor, Observer
from edgempi.parallel.outputs import Output, collect
from edgempi.plan.plan import Program
from edgempi.plan.share import device_share
from edgempi.plan.spec import ModelSpec


class Runner:
    """One rank's part of a program, loaded and ready.

    Collective: every rank of `world` constructs it with the same program, spec and (equal copies of the) folder.

    Args:
        world: all ranks; exactly the devices of the program.
        program: who owns what, per phase.
        spec: the model.
        folder: the checkpoint on this host.
        route: how linears keep their weights; None: what is fastest here.
    """

    def __init__(
        self, world: World, program: Program, spec: ModelSpec, folder: Path, route: Route | None = None
    ) -> None:
        self.world, self.program, self.spec = world, program, spec
        plan = program.prefill
        stage = plan.stage_of(world.rank)
        self.group = group = world.group(plan.stages.index(stage), stage.position(world.rank))
        dtype = TORCH_DTYPES[plan.weight_dtype]
        route = route or pick_route(dtype)
        self.route = route.name
        # Before the weights are there: what it measures with is given back.
        with torch.inference_mode():
            settled = {n: settle_overlap(world, group, phase, spec, route) for n, phase in program.phases.items()}
        self.overlap = settled["prefill"].overlap
        with torch.no_grad(), returning(), Checkpoint(folder) as checkpoint:
            share = device_share(plan, spec, world.rank)
            family = family_named(spec.family)
            weights = Weights(checkpoint, family, spec, share, route, dtype, plan.column_blocks)
            units = load_units(weights, stage.units)
            stacks = {unit.partition(".")[0] for unit in stage.units}
            tables = {stack: weights.tensor(f"{stack}.relative.weight") for stack in stacks}
            self.data_bytes_read, self.header_bytes_read = checkpoint.data_bytes, checkpoint.header_bytes
        relative = {stack: table for stack, table in tables.items() if table is not None}
        self._executors = {
            name: Executor(world, group, phase, spec, units, relative) for name, phase in settled.items()
        }

    @property
    def prefill(self) -> Executor:
        """What runs a whole-sequence pass."""
        return self._executors["prefill"]

    def close(self) -> None:
        """Give the stage's communicator back. Collective: every rank; the runner is of no use afterwards."""
        self.group.close()

    def forward(
        self,
        batch: Batch,
        phase: str = "prefill",
        caches: Sequence[KVCache] | None = None,
        index_B: Tensor | None = None,
        observe: Observer | None = None,
    ) -> list[dict[str, Output]]:
        """One pass; see `Executor.forward`. Collective: every rank."""
        executor = self._executors.get(phase, self._executors["prefill"])
        with torch.inference_mode():
            return executor.forward(batch, caches, index_B, observe)

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """A prefill pass with its outputs whole on rank 0 (empty elsewhere). Collective: every rank."""
        with torch.inference_mode():
            return collect(self.world, self.forward(batch), [0])

    def new_caches(self, rows: int, capacity: int) -> list[KVCache]:
        """Empty key-value caches for a batch, one per microbatch."""
        return [KVCache(capacity) for _ in self._executors["prefill"].microbatches(rows)]
