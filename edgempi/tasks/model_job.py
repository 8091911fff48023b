"""What `infer`, `plan` and `verify` share: from a configuration to a program, and from a job to a loaded runner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import edgempi
from edgempi.cluster.known import known_profile
from edgempi.cluster.profile import ClusterProfile
from edgempi.comm import World
from edgempi.config.schema import Config, Overlap, ParallelConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.inference.runner import Runner
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.source import locate, read_spec
from edgempi.models.weights import check_weights
from edgempi.plan.auto import Allowed, plan_auto
from edgempi.plan.check import check_program
from edgempi.plan.explain import explain, headline
from edgempi.plan.galaxy import plan_galaxy
from edgempi.plan.latency import predict_latency
from edgempi.plan.memory import check_budgets
from edgempi.plan.plan import Plan, Program
from edgempi.plan.planners import Forms, plan_program, program_of
from edgempi.plan.search import Tried
from edgempi.plan.spec import ModelSpec
from edgempi.plan.text import program_from_dict, program_from_yaml, program_to_dict
from edgempi.plan.workload import Workload
from edgempi.profiling.process import forget_peak, peak_bytes, resident_bytes

PATIENCE = 20
"""Where a rank may have much to do alone (fetch, load, run an oracle), waits have this many times the usual bound."""

SUBTILES = 2
"""Into how many tiles a device's tokens are cut where communication is overlapped and nobody knows better."""
BLOCK_WIDTH = 2048
"""One block of weight columns for so much of the model's width: a product between two polls then takes milliseconds on
a slow device, and cutting it finer costs more than it hides."""


@dataclass(frozen=True)
class ModelJob:
    """A model and the program that shares it."""

    spec: ModelSpec
    program: Program
    work: Workload
    explained: list[dict[str, Any]]
    ranking: tuple[Tried, ...] = ()
    """What `planner=auto` tried; stays with the parent."""

    def as_dict(self) -> dict[str, Any]:
        """JSON types, for the payload."""
        return {
            "headline": headline(self.program.prefill, self.spec, self.work),
            "plan": self.explained,
            "spec": self.spec.as_dict(),
            "program": program_to_dict(self.program),
            "work": asdict(self.work),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelJob:
        """What `as_dict` described, on a rank."""
        spec, program = ModelSpec.from_dict(data["spec"]), program_from_dict(data["program"])
        return cls(spec, program, Workload(**data["work"]), data["plan"])


def plan_job(config: Config, spec: ModelSpec, work: Workload) -> ModelJob:
    """Plan, check the plan against the model and the budgets, and explain it.

    Raises:
        UserError: the plan does not fit the model, the devices or their memory.
    """
    cluster = known_profile(config.cluster)
    program, ranking = _program(config, spec, cluster, work)
    names = [device.name for device in cluster.devices]
    if len(program.prefill.devices) != cluster.size:
        raise UserError(
            "plan", value=f"{len(program.prefill.devices)} devices", rule=f"the cluster has {cluster.size}",
            remedy=f"Set cluster.ranks={len(program.prefill.devices)}, or plan for {cluster.size} devices",
        )  # fmt: skip
    check_length(spec, work.tokens, "decoder" if spec.enc and spec.dec else "request")
    check_length(spec, work.memory_tokens, "request")
    check_budgets(program.prefill, spec, work, names, [device.memory_budget_bytes for device in cluster.devices])
    return ModelJob(spec, program, work, explain(program, spec, work, names), ranking)


def check_length(spec: ModelSpec, tokens: int, what: str) -> None:
    """Refuse a sequence that is longer than the model's positions."""
    if spec.max_tokens is not None and tokens > spec.max_tokens:
        raise UserError(
            f"{what} length", value=f"{tokens} tokens", rule=f"the model has positions for {spec.max_tokens}",
            remedy="Shorten the request",
        )  # fmt: skip


def locate_model(config: Config) -> tuple[Path, ModelSpec]:
    """The folder on this host and the model that its configuration describes."""
    folder = locate(config.model.path, config.model.revision)
    spec = read_spec(folder)
    with Checkpoint(folder) as checkpoint:
        check_weights(checkpoint, family_named(spec.family), spec)
    return folder, spec


@dataclass(frozen=True)
class Loaded:
    """A loaded runner and what loading cost this rank."""

    runner: Runner
    folder: Path
    import_bytes: int
    load_s: float


def load(config: Config, job: ModelJob, world: World) -> Loaded:
    """Load this rank's share, once all ranks agree on what they hold. Collective: every rank.

    Raises:
        UserError: hosts disagree on the version of edgempi or on the checkpoint; they are named.
    """
    folder = locate(config.model.path, config.model.revision)
    with Checkpoint(folder) as checkpoint:
        fingerprint = checkpoint.fingerprint
    with world.patience(PATIENCE):
        agree(world, {"edgempi version": edgempi.__version__, "checkpoint": fingerprint})
    forget_peak()
    import_bytes, start = resident_bytes(), time.perf_counter()
    runner = Runner(world, job.program, job.spec, folder)
    with world.patience(PATIENCE):
        world.barrier()
    return Loaded(runner, folder, import_bytes, time.perf_counter() - start)


def agree(world: World, facts: Mapping[str, str]) -> None:
    """Check that all ranks hold the same facts. Collective: every rank; all raise alike."""
    everyone = world.all_gather_json({"host": world.host, **facts})
    for fact, mine in everyone[0].items():
        if fact == "host":
            continue
        others = [f"rank {r} on {one['host']} has {one[fact]}" for r, one in enumerate(everyone) if one[fact] != mine]
        if others:
            raise UserError(
                fact, value=f"rank 0 on {everyone[0]['host']} has {mine}, {', '.join(others)}",
                rule="all ranks hold the same", remedy="Copy it from one host to the others",
            )  # fmt: skip


def memory_used(loaded: Loaded) -> int:
    """The peak since before loading, above what the imports had taken."""
    return max(0, peak_bytes() - loaded.import_bytes)


def _program(
    config: Config, spec: ModelSpec, cluster: ClusterProfile, work: Workload
) -> tuple[Program, tuple[Tried, ...]]:
    planner = config.planner
    if planner.name is PlannerName.manual and planner.path is not None:
        try:
            text = Path(planner.path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(
                "planner.path", value=f"{planner.path}: {error.strerror}", rule="it is a program file",
                remedy="Write one with edgempi plan task.save=program.yaml",
            ) from error  # fmt: skip
        program = program_from_yaml(text)
        check_program(program, spec)
        return program, ()
    weights = config.weights.dtype.value
    wire = weights if config.wire.dtype is None else config.wire.dtype.value
    forms = _forms(config.parallel, spec, weights, wire)
    if planner.name in (PlannerName.galaxy, PlannerName.auto):
        _check_timed(config, cluster)
    if planner.name is PlannerName.galaxy:
        prefill = _cut(plan_galaxy(spec, work, cluster, forms), config.parallel, spec, work, cluster)
        return program_of(prefill, spec, config.parallel.decode), ()
    if planner.name is PlannerName.auto:
        wires = [wire] if config.wire.allowed is None else [allowed.value for allowed in config.wire.allowed]
        choice = plan_auto(spec, work, cluster, weights, _allowed(config.parallel, spec, tuple(wires)))
        return choice.program, choice.ranking
    speeds = [device.speed for device in cluster.devices]
    program = plan_program(spec, speeds, config.parallel, planner, forms)
    if not cluster.measured or cluster.weight_dtype != weights:
        return program, ()
    prefill = _cut(program.prefill, config.parallel, spec, work, cluster)
    return Program({name: replace(plan, subtiles=prefill.subtiles) for name, plan in program.phases.items()}), ()


def _cut(plan: Plan, parallel: ParallelConfig, spec: ModelSpec, work: Workload, cluster: ClusterProfile) -> Plan:
    """The plan with tokens cut into as many tiles as are predicted to be fastest, where the user left that open."""
    if plan.overlap == Overlap.blocking.value or parallel.subtiles is not None:
        return plan
    cuts = [replace(plan, subtiles=subtiles) for subtiles in Allowed.subtiles]
    return min(cuts, key=lambda cut: predict_latency(cut, spec, work, cluster).total_s)


def _check_timed(config: Config, cluster: ClusterProfile) -> None:
    """Refuse a planner that needs times where none were measured, or where the way of sharing is fixed already."""
    name, weights = config.planner.name.value, config.weights.dtype.value
    if not cluster.measured:
        raise UserError(
            f"planner={name}", value="no measured times of these devices and links",
            rule="it plans from what devices and links were measured to take",
            remedy="Run edgempi profile task.save=profile.yaml, then add cluster.profile=profile.yaml",
        )  # fmt: skip
    if cluster.weight_dtype != weights:
        raise UserError(
            "cluster.profile", value=f"measured with {cluster.weight_dtype} weights",
            rule=f"times are for the weights of the run, which are {weights}",
            remedy=f"Set weights={cluster.weight_dtype}, or measure again with edgempi profile weights={weights}",
        )  # fmt: skip
    parallel = config.parallel
    if parallel.stages is not None or parallel.pipeline or parallel.modes != [Sharing.hybrid]:
        raise UserError(
            f"planner={name}", value=f"beside parallel={parallel.name}",
            rule="galaxy shares by hybrid over all devices, and auto chooses the way of sharing itself",
            remedy="Leave parallel= out, or choose planner=proportional",
        )  # fmt: skip


def _allowed(parallel: ParallelConfig, spec: ModelSpec, wires: tuple[str, ...]) -> Allowed:
    """What `planner=auto` may choose: what the user fixed stays."""
    free = parallel.overlap is Overlap.auto
    overlaps = (Overlap.ring, Overlap.blocking) if free else (parallel.overlap,)
    return Allowed(
        wires=wires,
        overlaps=tuple(overlap.value for overlap in overlaps),
        subtiles=Allowed.subtiles if parallel.subtiles is None else (parallel.subtiles,),
        column_blocks=(_column_blocks(parallel, spec), parallel.column_blocks or 1),
        decode=parallel.decode,
    )


def _column_blocks(parallel: ParallelConfig, spec: ModelSpec) -> int:
    return parallel.column_blocks or max(1, round(max(stack.width for stack in spec.stacks.values()) / BLOCK_WIDTH))


def _forms(parallel: ParallelConfig, spec: ModelSpec, weights: str, wire: str) -> Forms:
    by_heads = not {Sharing.hybrid, Sharing.heads}.isdisjoint(parallel.modes)
    overlaps = by_heads and parallel.overlap is not Overlap.blocking
    return Forms(
        weight_dtype=weights,
        wire_dtype=wire,
        overlap=parallel.overlap.value if overlaps else Overlap.blocking.value,
        subtiles=parallel.subtiles or (SUBTILES if overlaps else 1),
        column_blocks=_column_blocks(parallel, spec) if overlaps else parallel.column_blocks or 1,
        token_chunks=tuple(parallel.token_chunks or ()),
    )
