"""The systems that fine-tune, as limits on one planner.

    standalone  the whole model on one device: the given one, or the one that is done first
    eddl        data parallel, rows by speed (EDDL, SEC 2021)
    ecofl       a pipeline of one device per stage (Eco-FL, ICPP 2022)
    asteroid    pipelines of groups, data parallel inside each, with any technique (Asteroid, MobiCom 2024)
    pac         the same under Parallel Adapters, with a cache and what can follow from it (arXiv 2408.10746)

The first four do not cache by themselves. With Parallel Adapters they may be asked to: rows that the paper lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from edgempi.cluster.profile import ClusterProfile
from edgempi.cluster.training_times import TrainingTimes
from edgempi.errors import UserError
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.planners import Forms
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.measured import Kept, training_costs
from edgempi.plan.training.memory import TrainingMemory
from edgempi.plan.training.pac import Continuation, Job, Phase, TrainingPlan, plan_training
from edgempi.plan.training.partition import Limits
from edgempi.plan.training.shortage import ShortageError
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload


class System(StrEnum):
    """Who trains what together."""

    standalone = "standalone"
    eddl = "eddl"
    ecofl = "ecofl"
    asteroid = "asteroid"
    pac = "pac"


STAYS = (Continuation.recompute, Continuation.in_place)
"""What can follow in a system whose later epochs are trained as the first one is."""
AFTER = {System.ecofl: STAYS, System.asteroid: STAYS}


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        system: who trains.
        technique: what is trained.
        cache: whether later epochs read the backbone's activations from a cache: True they do, False they do not, None
            as the system is published, and where it caches, as it pays.
        alone: the rank that `standalone` uses; None: the one that is done first.
        after: what the later epochs may do, beside the system's own rules; None: anything.
        published: plan by PAC's own objective, for comparison.
    """

    system: System
    technique: Technique
    cache: bool | None = None
    alone: int | None = None
    after: Continuation | None = None
    published: bool = False

    @property
    def caches(self) -> bool:
        """Whether there may be a cache."""
        return self.system is System.pac if self.cache is None else self.cache


@dataclass(frozen=True)
class SystemPlan:
    """A plan with what it was made from.

    Attributes:
        request: what was asked.
        limits: what its pipelines could look like.
        first: costs with the backbone.
        cached: costs from the cache; None where there is none.
        found: the plan.
    """

    request: Request
    limits: Limits
    first: Costs
    cached: Costs | None
    found: TrainingPlan


def plan_system(
    request: Request,
    spec: ModelSpec,
    tuning: Tuning,
    work: Workload,
    times: Sequence[TrainingTimes],
    cluster: ClusterProfile,
    job: Job,
    kept: Kept | None = None,
    forms: Forms | None = None,
) -> SystemPlan:
    """Plan a system for a model on measured devices; see `plan_costs`.

    Args:
        request: which system, and how it is used.
        spec: the model.
        tuning: the technique, which is the request's, with its sizes.
        work: tokens of a row.
        times: of each device, in rank order.
        cluster: links and memory budgets.
        job: rows, samples and epochs.
        kept: in what form things are kept.
        forms: dtypes of weights and wire in the plan; None: weights as `kept` has them, wire in fp32.
    """
    check_request(request)
    first = training_costs(spec, tuning, work, times, kept)
    cached = training_costs(spec, tuning, work, times, kept, cached=True) if request.caches and job.epochs > 1 else None
    found = plan_costs(request, first, cached, cluster, job, forms or Forms((kept or Kept()).weight_dtype))
    return SystemPlan(request, limits_of(request.system, cluster.size), first, cached, found)


def plan_costs(
    request: Request,
    first: Costs,
    cached: Costs | None,
    cluster: ClusterProfile,
    job: Job,
    forms: Forms | None = None,
) -> TrainingPlan:
    """Plan a system from costs.

    Raises:
        UserError: the technique or the cache is not the system's, a rank is none, there are fewer layers than stages,
            or memory is missing: on which device, how much, and what would help.
    """
    check_request(request)
    limits = limits_of(request.system, cluster.size)
    if (limits.stages or 1) > first.size:
        raise UserError(
            f"system={request.system}", value=f"{first.size} layers on {cluster.size} devices",
            rule="every device has a stage of its own, of one layer at least",
            remedy=f"Use at most {first.size} devices, or system=asteroid, which may leave some out",
        )  # fmt: skip
    after = _after(request, cached, job)
    try:
        if request.system is System.standalone:
            return _alone(request, first, cached, cluster, job, forms, after)
        return plan_training(first, cached, cluster, job, limits, forms, request.published, after)
    except ShortageError as lacks:
        raise _told(lacks, request) from lacks


def limits_of(system: System, devices: int) -> Limits:
    """What a system's pipelines look like."""
    match system:
        case System.standalone:
            return Limits(stages=1, group=1)
        case System.eddl:
            return Limits(stages=1, everyone=True)
        case System.ecofl:
            return Limits(stages=devices, group=1, everyone=True)
    return Limits()


def check_request(request: Request) -> None:
    """Check what does not depend on model or devices.

    Raises:
        UserError: `pac` with another technique than Parallel Adapters, or a cache with one of those.
    """
    if request.technique is Technique.parallel_adapter:
        return
    if request.system is System.pac:
        raise UserError(
            "system=pac", value=f"technique={request.technique}",
            rule="it needs activations that training does not change, as with technique=parallel_adapter",
            remedy="Set technique=parallel_adapter, or system=asteroid, which plans alike for any technique",
        )  # fmt: skip
    if request.cache:
        raise UserError(
            "cache", value=f"asked for with technique={request.technique}",
            rule="only Parallel Adapters leave the backbone's activations as they are",
            remedy="Set technique=parallel_adapter, or leave the cache out",
        )  # fmt: skip


def _after(request: Request, cached: Costs | None, job: Job) -> tuple[Continuation, ...]:
    """What the later epochs may do."""
    allowed = AFTER.get(request.system, tuple(Continuation))
    if cached is None or job.epochs == 1:
        return (Continuation.recompute,)
    if request.after is not None:
        if request.after not in allowed:
            raise UserError(
                "after the first epoch", value=request.after,
                rule=f"system={request.system} can {' or '.join(allowed)}",
                remedy="Leave it to the planner, or set system=pac",
            )  # fmt: skip
        return (request.after,)
    return tuple(way for way in allowed if not request.cache or way is not Continuation.recompute)


def _alone(
    request: Request,
    first: Costs,
    cached: Costs | None,
    cluster: ClusterProfile,
    job: Job,
    forms: Forms | None,
    after: Sequence[Continuation],
) -> TrainingPlan:
    """The best plan on one device; where none has the memory, what the nearest one lacks."""
    if request.alone is not None and not 0 <= request.alone < cluster.size:
        raise UserError(
            "device of system=standalone", value=request.alone, rule=f"it is a rank from 0 to {cluster.size - 1}",
            remedy="Name a rank of the cluster, or leave it out",
        )  # fmt: skip
    ranks = range(cluster.size) if request.alone is None else (request.alone,)
    plans, lacks = [], []
    for rank in ranks:
        one = ClusterProfile((cluster.devices[rank],), (), cluster.weight_dtype)
        costs = [None if c is None else replace(c, times=(c.times[rank],)) for c in (first, cached)]
        assert costs[0] is not None
        try:
            found = plan_training(
                costs[0], costs[1], one, job, Limits(stages=1), forms, published=request.published, after=after
            )
        except ShortageError as error:
            lacks.append(error)
        else:
            plans.append(_placed(found, rank, cluster.size))
    if not plans:
        raise min(lacks, key=lambda error: error.missing_bytes)
    best, *others = sorted(plans, key=lambda plan: plan.total_s)
    return replace(best, others=(*best.others, *others))


def _placed(found: TrainingPlan, rank: int, size: int) -> TrainingPlan:
    """A plan of one device as that of a rank among others, which stay idle."""

    def plan(alone: Plan) -> Plan:
        idle = tuple(Stage((), (d,), PRESETS["single"]) for d in range(size) if d != rank)
        return replace(alone, stages=(replace(alone.stages[0], devices=(rank,)), *idle))

    def phase(alone: Phase) -> Phase:
        nothing = dict.fromkeys(range(size), TrainingMemory(0, 0, 0, 0, 0, 0))
        return replace(alone, plan=plan(alone.plan), memory={**nothing, rank: alone.memory[0]})

    return replace(
        found,
        train=phase(found.train),
        cached=None if found.cached is None else phase(found.cached),
        others=tuple(_placed(other, rank, size) for other in found.others),
    )


def _told(lacks: ShortageError, request: Request) -> UserError:
    """The shortage, with what would help under this system and technique."""
    remedies = [f"raise its budget by {lacks.missing_bytes / 1e6:.0f} MB"]
    rule = lacks.rule
    if request.system in (System.standalone, System.eddl):
        rule = (
            f"its memory budget is {lacks.budget_bytes / 1e6:.0f} MB (above what its imports take), "
            f"{lacks.missing_bytes / 1e6:.0f} MB are missing, and the model stays whole under this system"
        )
        staged = System.pac if request.technique is Technique.parallel_adapter else System.asteroid
        remedies.append(f"set system={staged}, which cuts the model into stages")
    else:
        remedies.append("add devices")
    if request.technique is not Technique.parallel_adapter:
        remedies.append("set technique=parallel_adapter")
    said = ", ".join([*remedies, "set weights=bf16, or shorten the rows"])
    return UserError(
        f"system={request.system}, technique={request.technique}, {lacks.what}", value=lacks.value, rule=rule,
        remedy=said[0].upper() + said[1:],
    )  # fmt: skip
