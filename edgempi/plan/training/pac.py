"""`planner=pac`: the stages of the first epoch, what becomes of the cache after it, and the plan of the later epochs.

The first epoch trains in stages, data parallel inside each, while the backbone runs (PAC, arXiv 2408.10746). The later
ones can go on like it (`recompute`: nothing is cached), let the side network's stages read their own part of the cache
(`in_place`), or have cache and parameters redistributed and train data parallel (`redistribute`). Candidates come from
the dynamic program for several orders of the devices and numbers of microbatches; each is simulated, and what counts is
the time of all epochs together, moving included.

EDDL (SEC 2021) is the same with one stage, Eco-FL (ICPP 2022) with one device per stage: see `partition.Limits`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, inf

from edgempi.cluster.profile import ClusterProfile
from edgempi.errors import UserError
from edgempi.plan.apportion import length
from edgempi.plan.plan import PRESETS, Plan, Program, Stage
from edgempi.plan.planners import Forms
from edgempi.plan.training.actions import schedule
from edgempi.plan.training.costs import Costs, layer_spans
from edgempi.plan.training.memory import TrainingMemory, stage_memory
from edgempi.plan.training.network import Network
from edgempi.plan.training.objective import DEPTHS, Part, paper_objective, pipeline_steps
from edgempi.plan.training.partition import Limits, Partition
from edgempi.plan.training.redistribute import Redistribution, owners, redistribute
from edgempi.plan.training.runs import Runs
from edgempi.plan.training.shortage import refuse
from edgempi.plan.training.simulate import simulate

NEAR = 1.5
"""Pipelines that take longer than the best by this factor, by formula, are not simulated."""


class Continuation(StrEnum):
    """What the epochs after the first one do."""

    recompute = "recompute"
    in_place = "in_place"
    redistribute = "redistribute"


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        rows: of a mini-batch.
        samples: of an epoch.
        epochs: how many.
        write_s_per_byte: of putting activations into the cache, which goes on under the computation.
        read_s_per_byte: of reading them back, likewise.
    """

    rows: int
    samples: int
    epochs: int = 1
    write_s_per_byte: float = 0.0
    read_s_per_byte: float = 0.0

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch."""
        return ceil(self.samples / self.rows)


@dataclass(frozen=True)
class Phase:
    """One phase: its plan, how many microbatches each stage with layers holds, and what it was predicted to take."""

    plan: Plan
    depths: tuple[int, ...]
    step_s: float
    memory: Mapping[int, TrainingMemory]


@dataclass(frozen=True)
class TrainingPlan:
    """What the planner found.

    Attributes:
        continuation: what the later epochs do.
        train: the first epoch, and with `recompute` all.
        cached: the later epochs; None with `recompute`.
        moving: between the two; None where nothing moves.
        moving_s: what that takes.
        total_s: of all epochs.
        considered: by continuation, the least total that was found with it.
        others: what was not chosen, best first: the best of each cut into groups of devices with each continuation.
    """

    continuation: Continuation
    train: Phase
    cached: Phase | None
    moving: Redistribution | None
    moving_s: float
    total_s: float
    considered: Mapping[Continuation, float]
    others: tuple[TrainingPlan, ...] = ()

    @property
    def groups(self) -> tuple[int, ...]:
        """How many devices each stage of the first epoch has."""
        return tuple(stage.size for stage in self.train.plan.stages if stage.units)

    @property
    def program(self) -> Program:
        """The phases' plans: `train`, and `cached` where there is one."""
        phases = {"train": self.train.plan}
        return Program(phases if self.cached is None else {**phases, "cached": self.cached.plan})


def plan_training(
    first: Costs,
    cached: Costs | None,
    cluster: ClusterProfile,
    job: Job,
    limits: Limits | None = None,
    forms: Forms | None = None,
    published: bool = False,
    after: Collection[Continuation] = tuple(Continuation),
) -> TrainingPlan:
    """Plan all epochs.

    Args:
        first: what an epoch with the backbone costs.
        cached: what one from the cache costs; None for techniques that cannot cache.
        cluster: links, and what memory each device lends; its devices are those of the costs.
        job: what is to be trained.
        limits: what the first epoch's pipeline may look like.
        forms: dtypes of weights and wire.
        published: take the pipeline by PAC's own objective, for comparison, and redistribute whenever there is a cache.
        after: what the later epochs may do.

    Returns:
        The plan whose predicted total is least.

    Raises:
        UserError: no pipeline fits the devices' memory: which device lacks how much where least is missing. Or
            the later epochs can do nothing of `after`.
    """
    planner = _Planner(cluster, job, limits or Limits(), forms or Forms())
    candidates = list(planner.published(first) if published else planner.candidates(first, cached))
    if not candidates:
        raise refuse(Runs(first), cluster, planner.orders(first), planner.limits, job.rows)
    later = planner.data_parallel(cached) if cached is not None and job.epochs > 1 else None
    found = [plan for train in candidates for plan in planner.continued(train, first, cached, later, always=published)]
    found = sorted((plan for plan in found if plan.continuation in after), key=lambda plan: plan.total_s)
    if not found:
        raise UserError(
            "later epochs", value=" or ".join(after), rule="with one epoch, without a cache, or where not even the "
            "side network fits on each device, they can do nothing but recompute", remedy="Allow recompute",
        )  # fmt: skip
    considered: dict[Continuation, float] = {}
    kinds: dict[tuple[object, ...], TrainingPlan] = {}
    for plan in found:
        considered.setdefault(plan.continuation, plan.total_s)
        kinds.setdefault((plan.groups, plan.continuation), plan)
    best, *others = kinds.values()
    return replace(best, considered=considered, others=tuple(others))


@dataclass(frozen=True)
class _Planner:
    cluster: ClusterProfile
    job: Job
    limits: Limits
    forms: Forms

    def orders(self, costs: Costs) -> list[tuple[int, ...]]:
        """The orders to try: most memory first, as published, and by speed, fastest first and last."""
        everyone, whole = range(self.cluster.size), (0, costs.size)
        lent = [self.cluster.devices[d].memory_budget_bytes for d in everyone]
        seconds = [costs.both(d, whole).seconds(self.job.rows) for d in everyone]
        orders = [
            tuple(sorted(everyone, key=lambda d: -(inf if lent[d] is None else lent[d] or 0))),
            tuple(sorted(everyone, key=lambda d: seconds[d])),
            tuple(sorted(everyone, key=lambda d: -seconds[d])),
        ]
        return list(dict.fromkeys(orders))

    def candidates(self, costs: Costs, cached: Costs | None) -> Iterator[Phase]:
        """Of every number of stages, the best pipelines by formula, simulated."""
        runs, goal, extra = Runs(costs), inf, self._moving_s(costs) if cached is not None else {}
        found: dict[int, list[tuple[float, int, tuple[Part, ...]]]] = {}
        for microbatches in self._microbatches():
            limits = self.limits
            if microbatches == 1 and self.job.rows > 1 and limits.stages is None:
                limits = replace(limits, stages=1)  # a pipeline of one microbatch is one device after the other
            rows = ceil(self.job.rows / microbatches)
            for order in self.orders(costs):
                partition = Partition(runs, self.cluster, order, rows, microbatches, limits=limits)
                for stages, pipeline in partition.best(goal, extra).items():
                    found.setdefault(stages, []).append((pipeline.seconds, microbatches, pipeline.parts))
                    goal = min(goal, pipeline.seconds + extra.get(stages, 0.0))
        for stages, pipelines in found.items():
            near = (p for p in pipelines if p[0] + extra.get(stages, 0.0) <= NEAR * goal)
            for _, microbatches, parts in sorted(near, key=lambda pipeline: pipeline[:2])[:2]:
                for depths in DEPTHS if len(parts) > 1 else ("classic",):
                    phase = self._phase(parts, microbatches, depths, costs)
                    if self._fits(phase):
                        yield phase

    def published(self, costs: Costs) -> Iterator[Phase]:
        """The pipeline of PAC's program: the slowest stage as fast as can be, then the best number of stages."""
        microbatches = max(self._microbatches())
        network, rows = Network.of(self.cluster), ceil(self.job.rows / microbatches)
        partition = Partition(Runs(costs), self.cluster, self.orders(costs)[0], rows, microbatches, limits=self.limits)
        pipelines = [pipeline.parts for pipeline in partition.balanced().values()]
        if pipelines:
            best = min(
                pipelines, key=lambda parts: paper_objective(pipeline_steps(parts, costs, network), microbatches)
            )
            yield self._phase(best, microbatches, "classic", costs)

    def data_parallel(self, cached: Costs) -> Phase | None:
        """The side network on all devices, with as few microbatches as memory allows; None where it does not fit."""
        runs = Runs(cached)
        for microbatches in self._microbatches():
            rows = ceil(self.job.rows / microbatches)
            found = [
                pipeline
                for order in self.orders(cached)
                for pipeline in Partition(runs, self.cluster, order, rows, microbatches, limits=Limits(stages=1))
                .best()
                .values()
            ]
            if found:
                best = min(found, key=lambda pipeline: pipeline.seconds)
                phase = self._phase(best.parts, microbatches, "classic", cached)
                return self._with_storage(phase, cached, self.job.read_s_per_byte)
        return None

    def continued(
        self, train: Phase, first: Costs, cached: Costs | None, later: Phase | None, always: bool
    ) -> Iterator[TrainingPlan]:
        """A first epoch with all that can follow it."""
        job, batches = self.job, self.job.batches
        if not (always and later is not None):
            total = job.epochs * batches * train.step_s
            yield TrainingPlan(Continuation.recompute, train, None, None, 0.0, total, {})
        if cached is None or job.epochs == 1:
            return
        written = self._with_storage(train, first, job.write_s_per_byte)
        before, after = batches * written.step_s, (job.epochs - 1) * batches
        if not (always and later is not None):
            here = self._simulated(train.plan, train.depths, cached)
            here = self._with_storage(here, cached, job.read_s_per_byte)
            total = before + after * here.step_s
            yield TrainingPlan(Continuation.in_place, written, here, None, 0.0, total, {})
        if later is not None:
            moving = redistribute(train.plan, later.plan, first, job.rows)
            moving_s = Network.of(self.cluster).exchange_s(moving.sent(batches))
            total = before + moving_s + after * later.step_s
            yield TrainingPlan(Continuation.redistribute, written, later, moving, moving_s, total, {})

    def _microbatches(self) -> list[int]:
        """Powers of two, and one row each."""
        rows = self.job.rows
        return sorted({2**k for k in range(rows.bit_length())} | {rows})

    def _moving_s(self, costs: Costs) -> dict[int, float]:
        """By number of stages, about what redistribution adds to each step of the first epoch."""
        if self.job.epochs == 1 or self.cluster.size == 1:
            return {}
        everyone = tuple(range(self.cluster.size))
        link = Network.of(self.cluster).slowest(everyone, everyone)
        each = link.seconds(self.job.rows * costs.cache_bytes((0, costs.size)) / self.cluster.size)
        return {stages: (stages - 1) / stages * each for stages in range(1, self.cluster.size + 1)}

    def _phase(self, parts: Sequence[Part], microbatches: int, depths: str, costs: Costs) -> Phase:
        stages = [
            Stage(
                costs.units(part.layers),
                part.devices,
                PRESETS["single" if len(part.devices) == 1 else "data"],
                rows=() if len(part.devices) == 1 else tuple(map(float, part.rows)),
            )
            for part in parts
        ]
        working = {device for part in parts for device in part.devices}
        idle = (Stage((), (d,), PRESETS["single"]) for d in range(self.cluster.size) if d not in working)
        plan = self.forms.plan((*stages, *idle), microbatches)
        held = tuple(min(k, microbatches) for k in DEPTHS[depths](len(parts)))
        return self._simulated(plan, held, costs)

    def _simulated(self, plan: Plan, depths: tuple[int, ...], costs: Costs) -> Phase:
        step_s = simulate(schedule(plan, costs, self.job.rows, depths), costs, self.cluster).step_s
        rows = ceil(self.job.rows / plan.microbatches)
        memory = {device: TrainingMemory(0, 0, 0, 0, 0, 0) for device in plan.devices}
        working = [stage for stage in plan.stages if stage.units]
        spans = [layers for layers in layer_spans(plan, costs) if length(layers)]
        for stage, layers, depth in zip(working, spans, depths, strict=True):
            for device, (start, stop) in zip(stage.devices, stage.row_spans(rows), strict=True):
                memory[device] = stage_memory(costs, layers, stop - start, depth)
        return Phase(plan, depths, step_s, memory)

    def _with_storage(self, phase: Phase, costs: Costs, s_per_byte: float) -> Phase:
        """A step that ends no earlier than the device with most to write to its cache, or to read from it, is done."""
        nbytes = dict.fromkeys(phase.plan.devices, 0)
        for layers, held in owners(phase.plan, costs, self.job.rows):
            for device in held:
                nbytes[device] += costs.cache_bytes(layers)
        return replace(phase, step_s=max(phase.step_s, max(nbytes.values()) * s_per_byte))

    def _fits(self, phase: Phase) -> bool:
        lent = ((memory, self.cluster.devices[device].memory_budget_bytes) for device, memory in phase.memory.items())
        return all(budget is None or memory.peak <= budget for memory, budget in lent)
