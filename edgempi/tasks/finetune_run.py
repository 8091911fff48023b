"""What every rank does in `edgempi finetune`: from samples and a plan to what was learned."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import edgempi
from edgempi.comm import World
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.finetune.cache.folder import remove_stale
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.caching import RunCache
from edgempi.finetune.carrying import Cargo, collect, spread
from edgempi.finetune.checkpoint import Best, Checkpoints, Identity, Position, load_order, load_trained
from edgempi.finetune.course import Calls, Course, Outcome, Phase
from edgempi.finetune.data.handout import shared_samples
from edgempi.finetune.evaluate import evaluate
from edgempi.finetune.export import Base, write_adapter, write_model
from edgempi.finetune.heldout import HeldOut
from edgempi.finetune.holdings import Holdings
from edgempi.finetune.loop import SETUP, SWITCH, train
from edgempi.finetune.optim import Optimizing, Updater
from edgempi.finetune.picked import Data
from edgempi.finetune.progress import Bar
from edgempi.finetune.report import Report, step_times, summary_of
from edgempi.finetune.rhythm import TRAIN, Extent, Phases
from edgempi.finetune.session import PATIENCE, Restored, Session
from edgempi.finetune.settings import Judged, cache_place, goal_of, key_of, known_by, optimizing_of, rhythm_of
from edgempi.finetune.setup import Setup
from edgempi.finetune.stopping import asked_to_stop
from edgempi.finetune.techniques import Initial, learning_dtype
from edgempi.finetune.techniques.head import TaskHead
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.source import locate, read_spec
from edgempi.models.weights import TORCH_DTYPES
from edgempi.plan.spec import ModelSpec
from edgempi.plan.text import program_from_dict
from edgempi.plan.training.asked import kept_of, tuning_of
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.technique import Technique
from edgempi.plan.workload import Workload
from edgempi.profiling.process import forget_peak, resident_bytes
from edgempi.tasks.model_job import agree

TRAIN_FILE, EVALUATION_FILE = "train.npz", "evaluation.npz"
CHECKPOINTS, EXPORT = "checkpoints", "trained"
"""In the run's folder."""


def train_together(config: Config, payload: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Train, and leave what was learned in the run's folder. Collective: every rank; the result counts on rank 0."""
    folder, data, rows = Path(payload["folder"]), payload["data"], config.finetune_data
    model = locate(config.model.path, config.model.revision)
    with Checkpoint(model) as checkpoint:
        fingerprint = checkpoint.fingerprint
    with world.patience(PATIENCE):
        agree(world, {"edgempi version": edgempi.__version__, "checkpoint": fingerprint})
    forget_peak()
    import_bytes = resident_bytes()
    holdings = Holdings(SETUP, import_bytes)
    setup, optimizing = _setup(config, payload, model), optimizing_of(config.optimizer, config.technique)
    samples = Data(shared_samples(world, folder / TRAIN_FILE), rows.batch, data["pad"])
    held: Data | None = None
    if EVALUATION_FILE in data["rows"]:
        held = Data(shared_samples(world, folder / EVALUATION_FILE), config.evaluation.batch, data["pad"])
    device = list(config.cluster.named_devices())[world.rank]
    with ExitStack() as opened:
        cache: RunCache | None = None
        held_out: HeldOut | None = None
        if setup.continuation is not Continuation.recompute:
            prints = {"model": fingerprint, **data}
            root, budget = cache_place(config.cache, device)
            key = key_of(config.cache, setup.spec, setup.tuning, config.weights.dtype.value, prints)
            if budget.disk_bytes:  # what other keys left would take room beside it
                remove_stale(root, key)
            store = opened.enter_context(ActivationCache(root, key, budget))
            cache = RunCache(setup.spec, store, samples.samples, config.cache.prefetch_samples, setup.dtype)
            opened.callback(cache.rest)
            if held is not None:
                beside = RunCache(setup.spec, store, held.samples, config.cache.prefetch_samples, setup.dtype)
                opened.callback(beside.rest)
                held_out = HeldOut(world, held, beside, setup.first)
        known = known_by(optimizing, config.optimizer, rows, config.weights.dtype.value, samples)
        identity = Identity.of(fingerprint, setup.spec, setup.tuning, config.optimizer.name.value, known)
        one = _Run(
            config, world, folder, setup, optimizing, samples, held, cache, held_out, identity, payload, holdings
        )
        outcome = one.train()
        used_bytes, by_phase = holdings.peak, holdings.as_dict()
        exported = one.export(outcome)
        ranks = world.gather_json(
            {
                "device": device,
                "host": world.host,
                "peak_bytes": used_bytes,
                "import_bytes": import_bytes,
                **world.traffic.as_dict(),
                "cache": None if cache is None else {**asdict(cache.cache.counters), "disk_bytes": store.disk_bytes},
                "moved": one.moved,
                "held": by_phase,
            }
        )
        one.session.close()
    if cache is not None and not config.cache.keep:
        shutil.rmtree(store.folder, ignore_errors=True)
    if ranks is None:
        return {}
    summary = one.finish(outcome, ranks)
    return {**payload, **summary, "exported": exported, "ranks": ranks, "began_at": one.began.step}


class _Run:
    """One run on one rank."""

    def __init__(
        self, config: Config, world: World, folder: Path, setup: Setup, optimizing: Optimizing, data: Data,
        held: Data | None, cache: RunCache | None, held_out: HeldOut | None, identity: Identity,
        payload: Mapping[str, Any], holdings: Holdings,
    ) -> None:  # fmt: skip
        self._config, self._world, self._folder, self._setup = config, world, folder, setup
        self._data, self._held, self._payload, self._holdings = data, held, payload, holdings
        self._cargo = Cargo.of(setup.spec, setup.tuning, optimizing.kinds, learning_dtype(setup.dtype))
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, identity, config.evaluation.checkpoints)
        self._judged = Judged.of(setup.spec, payload["data"]["metrics"], payload["data"]["label_ids"])
        self._bar: Bar | None = None
        self.began, newest, self._order = self._position()
        self.session = Session(world, setup, data, cache, held is not None, held_out, self._refilled)
        settings = config.optimizer
        extent = Extent(data.batches, settings.epochs, settings.accumulate, settings.max_steps)
        # Where nothing is left to train, nothing is computed again for it.
        goes_on = self.began.step < extent.steps
        phases = self.session.phases(self.began, self._order) if goes_on else Phases()
        self._course = Course(
            extent, optimizing, phases, rhythm_of(config.evaluation, held is not None),
            goal_of(config.evaluation, self._judged), predicted_s=payload["predicted_s"],
        )  # fmt: skip
        if newest is not None:
            checkpoint = newest
            self.session.restore(lambda plan: Restored(*spread(world, plan, self._cargo, checkpoint)))
        resumed_at = self.began.step if newest is not None else None
        self._report: Report | None = None
        if world.leads:
            self._report = Report(self._folder, resumed_at, config.evaluation.tensorboard)

    @property
    def moved(self) -> dict[str, Any] | None:
        """What of the cache moved, from this device and to it."""
        gathering = self.session.gathering
        return None if gathering is None or gathering.moved is None else asdict(gathering.moved)

    def train(self) -> Outcome:
        """To the end."""
        saves = self._config.evaluation.save_every_steps is not None
        bar = self._bar = Bar(self._course.extent.steps, self.began.step) if self._world.leads else None
        with asked_to_stop() as stop:
            calls = Calls(
                began=self._begin_epoch,
                moved=bar.moved if bar else lambda moved: None,
                evaluate=None if self._held is None else self._evaluate,
                log=self._report.log if self._report else lambda row: None,
                save=self._save if saves else None,
                weigh=lambda phase, updater: self._holdings.weigh(phase.tensors, updater),
                stop=stop,
            )
            try:
                return train(
                    self._world, self._data, self._course, self._enter, calls, self.began, self._order
                )  # fmt: skip
            finally:
                if bar:
                    bar.close()

    def export(self, outcome: Outcome) -> str:
        """Write what was trained, the best of it where that was saved, in the form of its technique; its folder."""
        target, config = self._folder / EXPORT, self._config
        best = outcome.position.best is not None and config.evaluation.save_every_steps is not None
        names = tuple(self._cargo.shapes)

        def write(state: Mapping[str, Tensor]) -> None:
            setup = self._setup
            base = Base.of(setup.folder, read_spec(setup.folder), config.model.path, config.model.revision)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in outcome.figures.items())
            notes = f"Trained on {self._payload['data']['origin']}." + (f" Last evaluation: {figures}." * bool(figures))
            if setup.tuning.technique is Technique.full:
                write_model(target, setup.folder, base, setup.spec, setup.tuning, state, notes)
            else:
                write_adapter(target, base, setup.spec, setup.tuning, state, notes)

        def from_best() -> None:
            found = self._checkpoints.best()
            assert found is not None, "it was saved when it was the best"
            write(load_trained(found.folder, names))

        with self._world.patience(PATIENCE):
            if best:
                self._world.only_on_rank_0(from_best)
            else:
                plan = self.session.plan_of(outcome.phase.name)
                cargo = replace(self._cargo, kinds=())
                collect(self._world, plan, cargo, outcome.phase.tensors, {}, lambda state, kept: write(dict(state)))
        return str(target)

    def finish(self, outcome: Outcome, ranks: list[Any]) -> dict[str, Any]:
        """Write the summary, on rank 0."""
        assert self._report is not None
        settings = {
            name: asdict(getattr(self._config, name))
            for name in ("model", "technique", "system", "optimizer", "cache", "finetune_data", "evaluation", "weights")
        }
        planned = self._payload["predicted_s"]
        if any(rank["moved"] and rank["moved"]["missing"] for rank in ranks):  # the first plan went on to the end
            planned = dict.fromkeys(planned, planned[TRAIN])
        steps = step_times(outcome.spent, planned, min(self._config.optimizer.accumulate, self._data.batches))
        summary = {**summary_of(outcome, self._course.goal, settings, self._report.rows), "steps": steps}
        gathering = self.session.gathering
        summary["refilled_rows"] = 0 if gathering is None else gathering.refilled
        self._report.finish({**summary, "ranks": ranks, "trained": self._payload["trained"]})
        return {**summary, "losses": [float(row["loss"]) for row in self._report.rows]}

    def _position(self) -> tuple[Position, Path | None, np.ndarray | None]:
        """Where the run begins, the checkpoint that it goes on from on rank 0, and the order of the epoch under way."""
        fresh = Position(step=0, epoch=0, batch=0, seed=self._setup.seed, order="")
        if not self._config.task.resume:
            return fresh, None, None
        found = self._checkpoints.newest() if self._world.leads else None
        if self._world.leads and found is None:
            raise UserError(
                "task.folder", value=self._folder, rule="it holds a checkpoint that is whole",
                remedy="Leave out task.resume, and begin in another folder",
            )  # fmt: skip
        order = None if found is None else load_order(found.folder)
        mine = None if found is None else [asdict(found.position), None if order is None else order.tolist()]
        about, numbers = self._world.all_gather_json(mine)[0]
        best = about["best"] and Best(**about["best"])
        begun = None if numbers is None else np.array(numbers, np.int64)
        return Position(**{**about, "best": best}), found.folder if found else self._folder, begun

    def _begin_epoch(self, epoch: int, order: np.ndarray) -> None:
        self._order = order

    def _refilled(self, done: int, rows: int) -> None:
        if self._bar is not None:
            self._bar.refilled(done, rows)

    def _enter(self, name: str, before: Phase | None, updater: Updater | None) -> Phase:
        self._holdings.turn(SETUP if before is None else SWITCH)
        phase = self.session.enter(name, before, updater)
        self._holdings.turn(phase.name, *self.session.trunks)
        return phase

    def _evaluate(self, phase: Phase) -> Mapping[str, float]:
        assert self._held is not None
        judging = self.session.judging()
        return evaluate(
            self._world, judging.executor, self._held, self._judged.reading, self._judged.metric, judging.read,
            judging.keep,
        )  # fmt: skip

    def _save(self, phase: Phase, updater: Updater, position: Position, best: bool) -> None:
        order = self._order if position.batch else None
        with self._world.patience(PATIENCE):
            collect(
                self._world, self.session.plan_of(phase.name), self._cargo, updater.tensors, updater.state(),
                lambda trained, kept: self._checkpoints.save(position, trained, kept, order),
            )  # fmt: skip


def _setup(config: Config, payload: Mapping[str, Any], model: Path) -> Setup:
    spec = ModelSpec.from_dict(payload["spec"])
    return Setup(
        folder=model,
        spec=spec,
        task=TaskHead(spec.head, tuple(payload["fresh"])),
        tuning=tuning_of(config.technique),
        initial=Initial(config.technique.initial.value),
        dtype=TORCH_DTYPES[config.weights.dtype.value],
        seed=config.finetune_data.seed,
        program=program_from_dict(payload["program"]),
        depths={name: tuple(depths) for name, depths in payload["depths"].items()},
        continuation=Continuation(payload["continuation"]),
        work=Workload(**payload["work"]),
        kept=kept_of(config.weights.dtype.value, config.optimizer, config.cache, spec),
        kinds=optimizing_of(config.optimizer, config.technique).kinds,
        bucket_bytes=config.system.bucket_bytes,
    )
