"""A plan of training in words and numbers: who does what in each phase, what moves between them, what was rejected.

Everything is plain JSON types; tables are made elsewhere. Seconds of a step are those of the simulated schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgempi.cluster.profile import ClusterProfile
from edgempi.plan.apportion import length
from edgempi.plan.spec import is_layer, stack_of
from edgempi.plan.training.actions import Reduce, Schedule, Send, microbatch_spans, own_rows, schedule
from edgempi.plan.training.costs import Costs, layer_spans
from edgempi.plan.training.pac import Continuation, Job, Phase, TrainingPlan
from edgempi.plan.training.runs import Runs
from edgempi.plan.training.shortage import ShortageError, refuse
from edgempi.plan.training.simulate import simulate
from edgempi.plan.training.systems import SystemPlan

MOST_REJECTED = 8
MEMORY_KINDS = ("weights", "gradients", "optimizer", "activations", "buffers", "runtime")
SAID: Mapping[Continuation, str] = {
    Continuation.recompute: "the backbone in every epoch",
    Continuation.in_place: "the cache left in its stages",
    Continuation.redistribute: "the cache redistributed",
}


def explain_training(planned: SystemPlan, cluster: ClusterProfile, job: Job) -> dict[str, Any]:
    """A plan with its reasons.

    Returns:
        `system`, `technique`, `continuation`, `total_s`; `phases` (see `phase_rows`) and `devices`, a list of rows for
        each of them (see `device_rows`); `moving` (see `moving_row`, None where nothing moves); `considered`, what the
        later epochs could do with the total of each; `rejected` (see `rejected_rows`).
    """
    found, first, cached = planned.found, planned.first, planned.cached
    phases = [("train", found.train, first)]
    if found.cached is not None and cached is not None:
        phases.append(("cached", found.cached, cached))
    return {
        "system": planned.request.system.value,
        "technique": planned.request.technique.value,
        "continuation": found.continuation.value,
        "total_s": found.total_s,
        "phases": phase_rows(found, job),
        "devices": {name: device_rows(phase, costs, cluster, job.rows) for name, phase, costs in phases},
        "moving": moving_row(found, cluster, job),
        "considered": [
            {"continuation": way.value, "total_s": total, "chosen": way is found.continuation}
            for way, total in sorted(found.considered.items(), key=lambda item: item[1])
        ],
        "rejected": rejected_rows(planned, cluster, job),
    }


def phase_rows(found: TrainingPlan, job: Job) -> list[dict[str, Any]]:
    """One row per phase: `phase`, `plan`, `microbatches`, `epochs`, `steps`, `step_s` and `seconds` in all."""
    single = found.cached is None
    phases = [("train", found.train, job.epochs if single else 1)]
    if found.cached is not None:
        phases.append(("cached", found.cached, job.epochs - 1))
    return [
        {
            "phase": name,
            "plan": phase.plan.name,
            "microbatches": phase.plan.microbatches,
            "epochs": epochs,
            "steps": epochs * job.batches,
            "step_s": phase.step_s,
            "seconds": epochs * job.batches * phase.step_s,
        }
        for name, phase, epochs in phases
    ]


def device_rows(phase: Phase, costs: Costs, cluster: ClusterProfile, rows: int) -> list[dict[str, Any]]:
    """One row per device, in rank order.

    Args:
        phase: of a plan.
        costs: with which it was planned.
        cluster: the devices.
        rows: of a mini-batch.

    Returns:
        `device`, `rank`, `stage` (None: idle), `layers` as text, `rows` of a mini-batch, `depth` (microbatches under
        way); of one step `busy_s`, `idle_s`, `wire_s` (how long its link is taken), `sent_bytes`; `memory` in bytes by
        kind with its `peak`, and `budget_bytes` (None: no limit).
    """
    made = schedule(phase.plan, costs, rows, phase.depths)
    simulated = simulate(made, costs, cluster)
    wire: dict[int, float] = defaultdict(float)
    for bar in simulated.bars:
        if bar.kind in ("send", "reduce"):
            wire[bar.device] += bar.stop_s - bar.start_s
    batch, sent = microbatch_spans(rows, phase.plan.microbatches), sent_bytes(made)
    depths, found = iter(phase.depths), {}
    for stage, layers in zip(phase.plan.stages, layer_spans(phase.plan, costs), strict=True):
        depth = next(depths) if length(layers) else 0
        for rank in stage.devices:
            memory = phase.memory[rank]
            found[rank] = {
                "device": cluster.devices[rank].name,
                "rank": rank,
                "stage": phase.plan.stages.index(stage) if length(layers) else None,
                "layers": layers_text(stage.units),
                "rows": sum(length(own_rows(stage, rank, m)) for m in batch) if length(layers) else 0,
                "depth": depth,
                "busy_s": simulated.busy_s.get(rank, 0.0),
                "idle_s": simulated.idle_s(rank) if rank in simulated.busy_s else simulated.step_s,
                "wire_s": wire[rank],
                "sent_bytes": sent.get(rank, 0),
                "memory": {
                    **{kind: getattr(memory, kind) for kind in MEMORY_KINDS},
                    "peak": memory.peak,
                },
                "budget_bytes": cluster.devices[rank].memory_budget_bytes,
            }
    return [found[rank] for rank in sorted(found)]


def sent_bytes(made: Schedule) -> dict[int, int]:
    """What each device sends in a mini-batch: its messages, and its part of the rings, 2 (n - 1) / n of a bucket."""
    found: dict[int, int] = {}
    for device, actions in made.items():
        total = sum(action.nbytes for action in actions if isinstance(action, Send))
        sums = (action.bucket for action in actions if isinstance(action, Reduce))
        rings = sum(2 * (len(bucket.devices) - 1) * bucket.nbytes / len(bucket.devices) for bucket in sums)
        found[device] = total + round(rings)
    return found


def moving_row(found: TrainingPlan, cluster: ClusterProfile, job: Job) -> dict[str, Any] | None:
    """What moves between the phases: `seconds`, `cache_bytes` of all samples, `parameter_bytes`, and by `device` what
    each sends and receives.
    """
    if found.moving is None:
        return None
    sent, received = [0.0] * cluster.size, [0.0] * cluster.size
    for (source, target), nbytes in found.moving.sent(job.batches).items():
        sent[source] += nbytes
        received[target] += nbytes
    return {
        "seconds": found.moving_s,
        "cache_bytes": job.batches * sum(move.nbytes for move in found.moving.cache),
        "parameter_bytes": sum(move.nbytes for move in found.moving.parameters),
        "devices": [
            {"device": device.name, "sent_bytes": round(out), "received_bytes": round(into)}
            for device, out, into in zip(cluster.devices, sent, received, strict=True)
        ],
    }


def rejected_rows(planned: SystemPlan, cluster: ClusterProfile, job: Job) -> list[dict[str, Any]]:
    """The best plans that were not chosen, then the numbers of stages of which none fits: `name`, `total_s`, `why`."""
    found = planned.found
    rows: list[dict[str, Any]] = [
        {
            "name": f"{_groups(other.groups)}, {SAID[other.continuation]}",
            "total_s": other.total_s,
            "why": _slower(other, found),
        }
        for other in found.others[:MOST_REJECTED]
    ]
    seen = {len(plan.groups) for plan in (found, *found.others)}
    for stages in range(1, min(cluster.size, planned.first.size) + 1):
        if stages not in seen and planned.limits.stages in (None, stages):
            name = "one stage" if stages == 1 else f"{stages} stages"
            rows.append({"name": name, "total_s": None, "why": _why_not(stages, planned, cluster, job)})
    return rows


def layers_text(units: Sequence[str]) -> str:
    """`embed enc 0-11`, or `idle`."""
    words: list[str] = []
    for name in dict.fromkeys(stack_of(unit) for unit in units if unit != "head"):
        numbers = [int(unit.partition(".")[2]) for unit in units if stack_of(unit) == name and is_layer(unit)]
        words += ["embed"] * (f"{name}.embed" in units)
        if numbers:
            words.append(f"{name} {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{name} {numbers[0]}")
    return " ".join(words + ["head"] * ("head" in units)) or "idle"


def _groups(groups: Sequence[int]) -> str:
    if len(groups) == 1:
        return "one device" if groups[0] == 1 else f"data parallel on {groups[0]}"
    return f"{len(groups)} stages of {' | '.join(map(str, groups))}"


def _slower(other: TrainingPlan, best: TrainingPlan) -> str:
    return f"slower by {other.total_s / best.total_s - 1:.1%}" if best.total_s else "as fast"


def _why_not(stages: int, planned: SystemPlan, cluster: ClusterProfile, job: Job) -> str:
    """Why no pipeline of so many stages stands among the plans."""
    runs, limits = Runs(planned.first), replace(planned.limits, stages=stages)
    orders = [tuple(range(cluster.size)), tuple(reversed(range(cluster.size)))]
    error = refuse(runs, cluster, orders, limits, job.rows)
    if isinstance(error, ShortageError):
        return f"does not fit: {cluster.devices[error.device].name} lacks {error.missing_bytes / 1e6:.0f} MB"
    return "slower than the best by a formula, and not simulated"
