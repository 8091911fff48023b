"""A run's phases on one device: which units it loads, what it trains with, and how the second phase takes over.

    train    the backbone runs; where later epochs are to be cached, its activations are put aside
    cached   the side network alone: in its stages (`in_place`), or after cache and parameters have moved
             (`redistribute`, PAC, arXiv 2408.10746)

Evaluation is under the plan of `train`. In the cached phase its rows are read from the cache too (`heldout`); where it
has no room for them, the backbone stays loaded. What is trained is brought there before each evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.wire import wire_named
from edgempi.finetune.caching import RunCache
from edgempi.finetune.checkpoint.position import Position
from edgempi.finetune.course import Phase
from edgempi.finetune.data.order import order
from edgempi.finetune.executor import Executor
from edgempi.finetune.gathering import Gathering
from edgempi.finetune.heldout import HeldOut
from edgempi.finetune.minibatch import Keep, ReaderOf
from edgempi.finetune.optim import Updater
from edgempi.finetune.picked import Data
from edgempi.finetune.redistribute import move_parameters
from edgempi.finetune.refill import Told
from edgempi.finetune.rhythm import CACHED, TRAIN, Phases
from edgempi.finetune.setup import Setup
from edgempi.finetune.techniques import Initial
from edgempi.finetune.trunk import Trunk, load_trunk
from edgempi.models.allocator import give_back
from edgempi.plan.plan import Plan
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.redistribute import parameter_moves

PATIENCE = 20
"""Where a rank loads weights or writes files, waits have this many times the usual bound."""


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


@dataclass(frozen=True)
class Judging:
    """How rows are judged; where nothing is read, the backbone runs, and what it computes may be kept."""

    executor: Executor
    read: ReaderOf | None = None
    keep: Keep | None = None


Fetch = Callable[[Plan], Restored]
"""Brings a checkpoint to where a plan trains. Collective: every rank."""


class Session:
    """The phases of one run on one rank. Every rank makes one, and calls its methods alike.

    Args:
        world: all ranks.
        setup: what the run is.
        data: the samples.
        cache: of this device; None where nothing is cached.
        evaluates: whether the run evaluates.
        held: its held-out rows in the cache; None where nothing is cached.
        told: told how far it is where lost activations are computed again.
    """

    def __init__(
        self, world: World, setup: Setup, data: Data, cache: RunCache | None, evaluates: bool,
        held: HeldOut | None = None,
        told: Told = lambda done, rows: None,
    ) -> None:  # fmt: skip
        self._world, self._setup, self._data, self._cache = world, setup, data, cache
        self._evaluates, self._held, self._reads_held = evaluates, held, False
        self._costs = setup.costs()
        self.gathering: Gathering | None = None
        """What the cache went through before it was read; None where nothing is cached."""
        if cache is not None:
            self.gathering = Gathering(world, data, cache, setup.second, self._costs, told)
        self._fetch: Fetch | None = None
        self._main: Station | None = None
        self._now: Station | None = None
        self._stays = False
        """Whether the first plan goes on in the later phase: the cache has no room."""

    def phases(self, position: Position, begun: np.ndarray | None) -> Phases:
        """Which epochs run the backbone. Collective: every rank.

        An epoch that began with it ends with it. Before the first one that reads, an epoch fills the cache where there
        is nothing in it; what else is missing is computed apart.

        Args:
            position: where the run begins, or goes on.
            begun: the order of the epoch within which it goes on; None between two.
        """
        if self.gathering is None:
            return Phases()
        self.gathering.seen = begun if position.batch else None
        fills = position.phase != CACHED and (position.batch > 0 or self.gathering.is_empty())
        return Phases(self._setup.continuation, position.epoch + 1 if fills else 0)

    def restore(self, fetch: Fetch) -> None:
        """Begin with a checkpoint, under the plan of the first phase that is entered."""
        self._fetch = fetch

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """What is loaded here by now."""
        return tuple(station.trunk for station in (self._now, self._main) if station is not None)

    def plan_of(self, name: str) -> Plan:
        """The plan of a phase that was entered."""
        return self._setup.first if name == TRAIN or self._stays else self._setup.second

    def enter(self, name: str, before: Phase | None, updater: Updater | None) -> Phase:
        """Begin a phase; see `course.Enter`. Collective: every rank."""
        with self._world.patience(PATIENCE):
            if name == TRAIN:
                self._now = self._with_backbone()
                return self._train(self._load(self._now))
            if before is None or updater is None:
                return self._begin_cached()
            return self._switch(updater)

    def judging(self) -> Judging:
        """What evaluates with what is trained by now. Collective: every rank."""
        executor = self._current()
        if self._held is None or self._stays:
            return Judging(executor)
        if not self._reads_held:
            return Judging(executor, keep=self._held.keep)
        self._held.begin()
        return Judging(executor, self._held.read)

    def _current(self) -> Executor:
        """An executor of the plan of `train` with what is trained by now."""
        assert self._main is not None and self._now is not None, "the run evaluates"
        if self._main is not self._now:
            moves = parameter_moves(self._now.plan, self._main.plan, self._costs)
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

    def _with_backbone(self) -> Station:
        """The plan of `train`, its backbone loaded; made when it is first asked for."""
        if self._main is None:
            self._main = self._station(TRAIN, backbone=True)
        return self._main

    def _load(self, station: Station) -> Mapping[str, Tensor]:
        """Put in what a checkpoint gives; returns what the optimizer kept."""
        fetch, self._fetch = self._fetch, None
        if fetch is None:
            return {}
        restored = fetch(station.plan)
        station.trunk.trained.load(restored.trained)
        return restored.kept

    def _train(self, kept: Mapping[str, Tensor], name: str = TRAIN) -> Phase:
        """The phase whose backbone runs; by another name where a cache has no room for all."""
        assert self._now is not None
        cache, seed, count = self._cache, self._setup.seed, len(self._data.samples)

        def seen(numbers: np.ndarray) -> np.ndarray:
            if self.gathering is not None:
                self.gathering.seen = numbers
            return numbers

        return Phase(
            name, self._now.executor, self._now.trunk.trained.tensors, lambda epoch: seen(order(seed, epoch, count)),
            kept, fit=seen, keep=None if cache is None or name != TRAIN else cache.keep,
        )  # fmt: skip

    def _cached(self, kept: Mapping[str, Tensor]) -> Phase:
        assert self._now is not None and self._cache is not None and self.gathering is not None
        now, cache, size = self._now, self._cache, self._data.size
        homes, seed = self.gathering.homes, self._setup.seed
        rank, units = self._world.rank, now.trunk.cached_units

        def begin(numbers: np.ndarray) -> None:
            cache.begin(numbers, size, now.plan, rank, units)

        return Phase(
            CACHED, now.executor, now.trunk.trained.tensors, lambda epoch: homes.order(seed, epoch), kept,
            fit=homes.fitted, begin=begin, read=cache.read,
        )  # fmt: skip

    def _begin_cached(self) -> Phase:
        """From a cache that is there already, but for what was lost."""
        if not self._gathered():
            self._now = self._with_backbone()
            return self._train(self._load(self._now), CACHED)
        self._settle_held()
        if self._needs_backbone:
            self._with_backbone()
        else:
            self._drop_backbone()
        if self._setup.continuation is Continuation.in_place:
            if self._main is None:
                self._main = self._station(TRAIN, backbone=False)
            self._now = self._main
        else:
            if self._evaluates and self._main is None:
                self._main = self._station(TRAIN, backbone=False)
            self._now = self._station(CACHED, backbone=False)
            self._leave_main()
        return self._cached(self._load(self._now))

    def _switch(self, updater: Updater) -> Phase:
        """From the phase that fills the cache to those that read it."""
        assert self._now is not None
        first, kept = self._now, dict(updater.state())
        if not self._gathered():
            return self._train(kept, CACHED)
        self._settle_held()
        self._drop_backbone()
        if self._setup.continuation is Continuation.in_place:
            return self._cached(kept)
        self._now = second = self._station(CACHED, backbone=False, initial=Initial.blank)
        moves = parameter_moves(first.plan, second.plan, self._costs)
        before = (first.trunk.trained, kept)
        kept = move_parameters(self._world, moves, self._costs, before, second.trunk.trained, self._setup.kinds)
        self._leave_main()
        return self._cached(kept)

    def _gathered(self) -> bool:
        """Bring the cache to where it is read; without room for it, the first plan stays."""
        assert self.gathering is not None
        found = self.gathering.bring(lambda: self._with_backbone().executor)
        self._stays = not found
        return found

    @property
    def _needs_backbone(self) -> bool:
        return self._evaluates and not self._reads_held

    def _settle_held(self) -> None:
        """Have held-out rows read from the cache from now on, where there is room for them."""
        if self._held is not None:
            if self._held.lacking():
                self._held.fill(self._with_backbone().executor)
            self._reads_held = not self._held.lacking()

    def _drop_backbone(self) -> None:
        """Let go of the backbone, unless rows are to be judged with it, before anything else is loaded."""
        if self._main is not None and not self._needs_backbone:
            # Whoever still knows the trunk keeps no weights by it.
            self._main.trunk.drop_backbone()
            give_back()

    def _leave_main(self) -> None:
        """Let go of the plan of `train`, unless the run evaluates under it."""
        if self._main is not None and not self._evaluates:
            self._main.executor.close()
            self._main = None
