"""From the ways of sharing that a benchmark names to plans, and whether each fits the devices' memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgempi.cluster.known import known_profile
from edgempi.config.check import check_config
from edgempi.config.cluster import ClusterConfig
from edgempi.config.schema import (
    Config,
    ParallelConfig,
    PlannerConfig,
    PlannerName,
    Sharing,
    WayConfig,
    WayName,
    WireConfig,
)
from edgempi.errors import UserError
from edgempi.plan.latency import predict_latency
from edgempi.plan.memory import predict_memory
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload
from edgempi.tasks.model_job import ModelJob, plan_job

OWN = "configured"
"""The name of the configuration's own way, where the benchmark names none."""


@dataclass(frozen=True)
class Planned:
    """A way of sharing with its plan.

    Attributes:
        name: the benchmark's.
        job: None where no plan fits the devices' memory.
        misfit: what a device lacks by prediction; None where the plan fits.
        predicted: `total_s` and each device's seconds, where the cluster was measured.
    """

    name: str
    job: ModelJob | None
    misfit: str | None
    predicted: dict[str, Any] | None

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.job is not None

    def as_dict(self) -> dict[str, Any]:
        """JSON types, for the payload."""
        job = None if self.job is None else self.job.as_dict()
        return {"name": self.name, "job": job, "misfit": self.misfit, "predicted": self.predicted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Planned:
        """What `as_dict` described, on a rank."""
        job = None if data["job"] is None else ModelJob.from_dict(data["job"])
        return cls(data["name"], job, data["misfit"], data["predicted"])


def plan_ways(config: Config, spec: ModelSpec, work: Workload) -> list[Planned]:
    """Plan every way of sharing.

    A way that does not fit the memory that the devices lend is kept with what they lack. It is planned to be run all
    the same where an emulated device's memory is limited for real: there the kernel says whether it fits, and not we.

    Raises:
        UserError: a way is impossible for another reason than memory.
    """
    return [_plan_way(name, one, spec, work) for name, one in _configs(config, spec).items()]


def _configs(config: Config, spec: ModelSpec) -> dict[str, Config]:
    if not config.bench.ways:
        return {OWN: config}
    found = {}
    for name, way in config.bench.ways.items():
        wire = WireConfig(dtype=way.wire, allowed=way.allowed)
        parallel, planner = _sharing(way, config.cluster, spec)
        found[name] = replace(config, parallel=parallel, planner=planner, wire=wire)
        check_config(found[name])
    return found


def _sharing(way: WayConfig, cluster: ClusterConfig, spec: ModelSpec) -> tuple[ParallelConfig, PlannerConfig]:
    by_heads = way.parallel in (WayName.hybrid, WayName.heads)
    forms: dict[str, Any] = {"name": way.parallel.value, "decode": Sharing.tensor if by_heads else None}
    forms |= {"overlap": way.overlap, "subtiles": way.subtiles}
    forms |= {"column_blocks": way.column_blocks, "token_chunks": way.token_chunks}
    planner = PlannerConfig(name=way.planner)
    speeds = [device.speed for device in cluster.named_devices().values()]
    total = sum(stack.layers for stack in spec.stacks.values())
    if way.parallel is WayName.pipeline:
        if way.planner is PlannerName.even and total < len(speeds):  # the last devices stay idle
            planner = PlannerConfig(name=PlannerName.manual, layers=[1] * total + [0] * (len(speeds) - total))
        return ParallelConfig(pipeline=True, modes=[Sharing.single], **forms), planner
    if way.parallel is WayName.single:
        # The others are stages without layers, which stay idle.
        layers = [0] * len(speeds)
        layers[speeds.index(max(speeds))] = total
        planner = PlannerConfig(name=PlannerName.manual, layers=layers)
        return ParallelConfig(pipeline=True, modes=[Sharing.single], **forms), planner
    return ParallelConfig(modes=[Sharing(way.parallel.value)], **forms), planner


def _plan_way(name: str, config: Config, spec: ModelSpec, work: Workload) -> Planned:
    cluster = config.cluster
    try:
        return Planned(name, job := plan_job(config, spec, work), None, _predict(job, cluster))
    except UserError as error:
        lifted = replace(config, cluster=_without_budgets(cluster))
        job = plan_job(lifted, spec, work)  # raises the same again where memory is not the reason
        limited = cluster.lab is not None and cluster.lab.memory_limit
        chosen = config.planner.name in (PlannerName.galaxy, PlannerName.auto)
        if chosen or not limited:
            return Planned(name, None, str(error), None)
        return Planned(name, job, str(error), _predict(job, cluster))


def _without_budgets(cluster: ClusterConfig) -> ClusterConfig:
    named = cluster.named_devices().items()
    devices = {name: replace(device, memory_budget_bytes=None) for name, device in named}
    return replace(cluster, devices=devices, memory_budget_bytes=None)


def _predict(job: ModelJob, cluster: ClusterConfig) -> dict[str, Any] | None:
    profile = known_profile(cluster)
    if not profile.measured or profile.weight_dtype != job.program.prefill.weight_dtype:
        return None
    latency = predict_latency(job.program.prefill, job.spec, job.work, profile)
    devices = [
        {"compute_s": device.compute_s, "wire_s": device.wire_s, "exposed_s": device.exposed_s}
        for device in latency.devices
    ]
    return {"total_s": latency.total_s, "devices": devices}


def needs_bytes(job: ModelJob, rank: int) -> dict[str, int]:
    """What a rank is predicted to hold: each part, and the peak."""
    memory = predict_memory(job.program.prefill, job.spec, rank, job.work)
    return {**asdict(memory), "peak": memory.peak}
