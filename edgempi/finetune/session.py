"""A run's phases on one device: which units it loads, what it trains with, and how the second phase takes over.

    train    the backbone runs; where later epochs are to be cached, its activations are put aside
    cached   the side network alone: in its stages (`in_place`), or after cache and parameters have moved
             (`redistribute`, PAC, arXiv 2408.10746)

Evaluation always runs the backbone, under the plan of `train`; where a run evaluates, that plan's units stay loaded in
the cached phase too, and are brought up to date before each evaluation. Without it the backbone is let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.wire import wire_named
from edgempi.finetune.caching import RunCache, cached_units
from edgempi.finetune.course import Phase
from edgempi.finetune.data.order import batches, order
from edgempi.finetune.executor import Executor
from edgempi.finetune.optim import Updater
from edgempi.finetune.orders import cached_order
from edgempi.finetune.picked import Data
from edgempi.finetune.redistribute import Moved, Shift, move_cache, move_parameters, shift
from edgempi.finetune.rhythm import CACHED, TRAIN, Phases
from edgempi.finetune.techniques import Initial
from edgempi.finetune.techniques.head import TaskHead
from edgempi.finetune.trunk import Trunk, load_trunk
from edgempi.models.allocator import give_back
from edgempi.plan.plan import Plan, Program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.measured import OPTIMIZER_COPIES, Kept
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.redistribute import redistribute
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.training.technique import Tuning
from edgempi.plan.workload import Workload

PATIENCE = 20
"""Where a rank loads weights or writes files, waits have this many times the usual bound."""


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


@dataclass
class Station:
    """A plan's place on this device."""

    plan: Plan
    trunk: Trunk
    executor: Executor


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gives this device: trained tensors, and what the optimizer kept for them."""

    trained: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]


class Session:
    """The phases of one run on one rank. Every rank makes one, and calls its methods alike.

    Args:
        world: all ranks.
        setup: what the run is.
        data: the samples.
        cache: of this device; None where nothing is cached.
        evaluates: whether the backbone is needed throughout.
    """

    def __init__(self, world: World, setup: Setup, data: Data, cache: RunCache | None, evaluates: bool) -> None:
        self.moved: Moved | None = None
        """What the switch between the phases moved."""
        self._world, self._setup, self._data, self._cache = world, setup, data, cache
        self._evaluates = evaluates
        self._restored: Restored | None = None
        self._costs = setup.costs()
        self._main: Station | None = None
        self._now: Station | None = None
        self._filled = 0
        self._stays = False
        """Whether the first plan goes on in the later phase: the cache has no room."""

    def phases(self, epoch: int, batch: int) -> Phases:
        """Which epochs fill the cache: none, where it has all that the cached epochs need. Collective: every rank.

        Args:
            epoch: with which the run begins, or goes on.
            batch: mini-batches of it that are done.
        """
        if self._cache is None:
            return Phases()
        wanted = self._shift()
        rank = self._world.rank
        mine = wanted.samples.get(rank, ())
        lacks = bool(mine and wanted.layers[rank] and self._cache.cache.missing(mine, wanted.layers[rank]))
        if any(self._world.all_gather_json(lacks)):
            # An epoch of which a part is done fills no more than its rest.
            self._filled = epoch + (batch > 0)
            return Phases(self._setup.continuation, self._filled + 1)
        return Phases(self._setup.continuation, 0)

    def restore(self, restored: Restored) -> None:
        """Begin with what a checkpoint gave this device, under the plan of the first phase that is entered."""
        self._restored = restored

    def plan_of(self, name: str) -> Plan:
        """The plan of a phase."""
        return self._setup.first if name == TRAIN or self._stays else self._setup.second

    def enter(self, name: str, before: Phase | None, updater: Updater | None) -> Phase:
        """Begin a phase; see `course.Enter`. Collective: every rank."""
        with self._world.patience(PATIENCE):
            if name == TRAIN:
                self._main = self._now = self._station(TRAIN, backbone=True)
                return self._train(self._load(self._now))
            assert self._cache is not None
            if before is None or updater is None:
                return self._begin_cached()
            return self._switch(updater)

    def current(self) -> Executor:
        """An executor that runs the backbone with what is trained by now. Collective: every rank."""
        assert self._main is not None and self._now is not None, "the run evaluates"
        if self._main is not self._now:
            moves = redistribute(self._now.plan, self._main.plan, self._costs, self._data.size).parameters
            move_parameters(
                self._world, moves, self._costs, (self._now.trunk.trained, {}), self._main.trunk.trained, ()
            )
        return self._main.executor

    def close(self) -> None:
        """Give back communicators. Collective: every rank."""
        stations = [self._now] if self._now is self._main else [self._now, self._main]
        for station in stations:
            if station is not None:
                station.executor.close()

    def _station(self, name: str, backbone: bool, initial: Initial | None = None) -> Station:
        setup, plan = self._setup, self.plan_of(name)
        units = plan.stage_of(self._world.rank).units
        trunk = load_trunk(
            setup.folder, setup.spec, units, setup.tuning, setup.dtype, setup.seed, setup.task,
            initial or setup.initial, backbone,
        )  # fmt: skip
        rows = min(self._data.size, len(self._data.samples))
        executor = Executor(
            self._world, plan, self._costs, trunk, setup.depths[name], rows, setup.bucket_bytes,
            wire_named(plan.wire_dtype),
        )  # fmt: skip
        return Station(plan, trunk, executor)

    def _load(self, station: Station) -> Mapping[str, Tensor]:
        """Put in what a checkpoint gave; returns what the optimizer kept."""
        restored, self._restored = self._restored, None
        if restored is None:
            return {}
        station.trunk.trained.load(restored.trained)
        return restored.kept

    def _train(self, kept: Mapping[str, Tensor], name: str = TRAIN) -> Phase:
        """The phase whose backbone runs; by another name where a cache has no room for all."""
        assert self._now is not None
        cache, seed, count = self._cache, self._setup.seed, len(self._data.samples)
        return Phase(
            name, self._now.executor, self._now.trunk.trained.tensors, lambda epoch: order(seed, epoch, count), kept,
            keep=None if cache is None or name != TRAIN else cache.keep,
        )  # fmt: skip

    def _cached(self, kept: Mapping[str, Tensor]) -> Phase:
        assert self._now is not None and self._cache is not None
        now, cache, data, setup = self._now, self._cache, self._data, self._setup
        rank, units = self._world.rank, now.trunk.cached_units

        def ordered(epoch: int) -> np.ndarray:
            return cached_order(
                setup.seed, epoch, len(data.samples), data.size, setup.first, now.plan, self._costs, self._filled
            )

        def begin(numbers: np.ndarray) -> None:
            cache.begin(numbers, data.size, now.plan, rank, units)

        return Phase(CACHED, now.executor, now.trunk.trained.tensors, ordered, kept, begin, cache.read)

    def _begin_cached(self) -> Phase:
        """From a cache that is there already."""
        if self._setup.continuation is Continuation.in_place:
            self._now = self._main = self._station(TRAIN, backbone=self._evaluates)
        else:
            self._now = self._station(CACHED, backbone=False)
            self._main = self._station(TRAIN, backbone=True) if self._evaluates else None
        return self._cached(self._load(self._now))

    def _switch(self, updater: Updater) -> Phase:
        """From the phase that fills the cache to those that read it."""
        assert self._now is not None and self._cache is not None
        first, kept = self._now, dict(updater.state())
        self.moved = move_cache(self._world, self._cache.cache, self._shift())
        if any(self._world.all_gather_json(len(self.moved.missing))):
            self._stays = True
            return self._train(kept, CACHED)
        if self._setup.continuation is Continuation.in_place:
            if not self._evaluates:
                first.trunk.drop_backbone()
            return self._cached(kept)
        second = self._station(CACHED, backbone=False, initial=Initial.blank)
        moves = redistribute(first.plan, second.plan, self._costs, self._data.size).parameters
        before = (first.trunk.trained, kept)
        kept = move_parameters(self._world, moves, self._costs, before, second.trunk.trained, self._setup.kinds)
        self._now = second
        if not self._evaluates:
            first.executor.close()
            self._main = None
            give_back()
        return self._cached(kept)

    def _shift(self) -> Shift:
        """Which samples are where after the epoch that fills the cache."""
        assert self._cache is not None
        setup, data, ids = self._setup, self._data, self._cache.ids
        numbers = order(setup.seed, self._filled, len(data.samples))
        listed = [[ids[number] for number in batch] for batch in batches(numbers, data.size)]
        return shift(setup.first, setup.second, self._costs, cached_units(setup.spec, setup.tuning), listed)
