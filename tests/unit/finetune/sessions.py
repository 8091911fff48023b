"""Runs of a tiny model over devices that are threads, with caches and checkpoints on disk, that end and go on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgempi.comm import World
from edgempi.finetune.cache.found import Budget, Counters
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.caching import RunCache, cached_units
from edgempi.finetune.carrying import Cargo, collect, spread
from edgempi.finetune.checkpoint import Checkpoints, Identity, Position, load_order
from edgempi.finetune.course import Calls, Course, Phase
from edgempi.finetune.evaluate import evaluate
from edgempi.finetune.heldout import HeldOut
from edgempi.finetune.loop import train
from edgempi.finetune.metrics import metric_for
from edgempi.finetune.optim import Optimizing, Schedule, Updater
from edgempi.finetune.picked import Data
from edgempi.finetune.redistribute import Moved
from edgempi.finetune.rhythm import CACHED, TRAIN, Extent, Rhythm
from edgempi.finetune.session import Restored, Session
from edgempi.finetune.setup import Setup
from edgempi.finetune.techniques import Initial
from edgempi.finetune.techniques.head import TaskHead
from edgempi.plan.plan import Plan, Program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.actions import classic_depths
from edgempi.plan.training.measured import Kept
from edgempi.plan.training.pac import Continuation
from edgempi.plan.workload import Workload
from models.zoo import PAD
from unit.comm.threads import on_ranks
from unit.finetune.toys import plan
from unit.finetune.tuned import TUNINGS, made, samples

COUNT, SIZE, EPOCHS, SEED = 11, 4, 4, 3
HOW = Optimizing(rate=0.02, schedule=Schedule.constant, warm_up=0)
TUNING = TUNINGS["parallel_adapter"]
Stages = Sequence[tuple[int, Sequence[int], Sequence[int]]]
LAYERS = 5
ALONE: Stages = [(LAYERS, [0], [])]
PIPE: Stages = [(2, [0], []), (3, [1], [])]
SHARED: Stages = [(LAYERS, [0, 1], [3, 1])]


@dataclass(frozen=True)
class Ways:
    """How devices share: the first epoch, and those that read."""

    first: Stages
    second: Stages
    after: Continuation = Continuation.redistribute


PAC = Ways(PIPE, SHARED)
IN_PLACE = Ways(PIPE, PIPE, Continuation.in_place)
LONE = Ways(ALONE, ALONE)


@dataclass
class Ended:
    """A run, or a part of one, as its first device saw it."""

    losses: list[float] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    moved: list[Moved | None] = field(default_factory=list)
    refilled: int = 0
    judged: list[tuple[float, bool]] = field(default_factory=list)
    """Of each evaluation, the loss, and whether activations were read."""
    told: list[tuple[int, int]] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)


class Workshop:
    """A model, its rows, and the folders of its runs.

    Args:
        folder: of all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "model").mkdir()
        _, spec = made("t5", folder / "model")
        self.spec: ModelSpec = spec
        self.data = Data(samples(spec, COUNT), SIZE, PAD)
        self.held = Data(samples(spec, 7, seed=1), 3, PAD)

    def setup(self, ways: Ways) -> Setup:
        """What every rank is told."""

        def planned(stages: Stages) -> Plan:
            return plan(self.spec, stages, 2 if len(stages) > 1 else 1)

        phases = {TRAIN: ways.first, CACHED: ways.second}
        return Setup(
            folder=self.folder / "model",
            spec=self.spec,
            task=TaskHead(self.spec.head),
            tuning=TUNING,
            initial=Initial.magnitude,
            dtype=torch.float32,
            seed=SEED,
            program=Program({name: planned(stages) for name, stages in phases.items()}),
            depths={name: classic_depths(len(stages)) for name, stages in phases.items()},
            continuation=ways.after,
            work=Workload(1, 7, 9),
            kept=Kept(),
            kinds=HOW.kinds,
            bucket_bytes=4000,
        )

    def key(self) -> CacheKey:
        """Of all caches."""
        width = self.spec.stacks[self.spec.last].width
        return CacheKey("m", "t", "p", (9, 7), cached_units(self.spec, TUNING), width, "fp32")

    def cached(self, device: str) -> set[int]:
        """The numbers of the samples of which a device has all layers."""
        with ActivationCache(self.folder / device, self.key(), Budget()) as store:
            ids = RunCache(self.spec, store, self.data.samples, 4, torch.float32).ids
            return {number for number, sample in enumerate(ids) if not store.missing([sample])}

    def lose(self, device: str) -> None:
        """Its disk is gone."""
        shutil.rmtree(self.folder / device)

    def run(
        self, devices: Sequence[str], ways: Ways, *, to: int | None = None, resume: bool = False,
        disk_bytes: int | None = None, epochs: int = EPOCHS, evaluates: bool = False,
    ) -> Ended:  # fmt: skip
        """Train on these devices, saving each step; up to a step if one is given."""
        ended, setup = Ended(), self.setup(ways)

        def body(world: World) -> tuple[Moved | None, Counters]:
            root = self.folder / devices[world.rank]
            with (
                torch.inference_mode(False),
                ActivationCache(root, self.key(), Budget(disk_bytes=disk_bytes)) as store,
            ):
                cache = RunCache(self.spec, store, self.data.samples, 4, torch.float32)
                try:
                    extent = Extent(self.data.batches, epochs, 1, to)
                    return self._rank(world, setup, cache, ended, extent, resume, evaluates)
                finally:
                    cache.rest()

        ranks = on_ranks(len(devices), body, timeout_s=60.0)
        ended.moved, ended.counters = [moved for moved, _ in ranks], [counters for _, counters in ranks]
        return ended

    def checkpoints(self) -> Checkpoints:
        """Of the one run."""
        return Checkpoints(self.folder / "run", Identity.of("m", self.spec, TUNING, "adamw"), keep_last=99)

    def _rank(
        self, world: World, setup: Setup, cache: RunCache, ended: Ended, extent: Extent, resume: bool, evaluates: bool
    ) -> tuple[Moved | None, Counters]:
        checkpoints, order = self.checkpoints(), dict[str, Any]()
        cargo = Cargo.of(self.spec, TUNING, HOW.kinds, torch.float32)
        beside = RunCache(self.spec, cache.cache, self.held.samples, 4, torch.float32)
        held = HeldOut(world, self.held, beside, setup.first) if evaluates else None
        session = Session(
            world, setup, self.data, cache, evaluates, held, lambda *far: ended.told.append(far)
        )  # fmt: skip
        position, begun = Position(0, 0, 0, SEED, ""), None
        if resume:
            found = checkpoints.newest()
            assert found is not None
            position, begun, folder = found.position, load_order(found.folder), found.folder
            session.restore(lambda made: Restored(*spread(world, made, cargo, folder)))

        def save(phase: Phase, updater: Updater, position: Position, best: bool) -> None:
            collect(
                world, session.plan_of(phase.name), cargo, updater.tensors, updater.state(),
                lambda trained, kept: checkpoints.save(
                    position, trained, kept, order["now"] if position.batch else None
                ),
            )  # fmt: skip

        def log(row: Any) -> None:
            if world.leads:
                ended.losses.append(row["loss"])
                ended.phases.append(row["phase"])

        def judged(phase: Phase) -> dict[str, float]:
            judging = session.judging()
            figures = evaluate(
                world,
                judging.executor,
                self.held,
                None,
                partial(metric_for, ("token_loss",)),
                judging.read,
                judging.keep,
            )  # fmt: skip
            if world.leads:
                ended.judged.append((figures["loss"], judging.read is not None))
            return figures

        course = Course(extent, HOW, session.phases(position, begun), Rhythm(1, 0 if evaluates else None, 1))
        calls = Calls(lambda epoch, numbers: order.update(now=numbers), save=save, log=log)
        if evaluates:
            calls = replace(calls, evaluate=judged)
        train(world, self.data, course, session.enter, calls, position, begun)
        beside.rest()
        session.close()
        assert session.gathering is not None
        ended.refilled = session.gathering.refilled
        return session.gathering.moved, cache.cache.counters
