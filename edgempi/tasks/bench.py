"""`edgempi bench`: time ways of sharing in one job, in turns, on a synthetic batch.

All ways meet the same ranks, the same links, the same kernels and, round by round, the same weather. Each is compared
with the first one named, and with two floors: its computation with no communication, and its bytes on the link.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from torch import Tensor

import edgempi
from edgempi.cluster.known import known_profile
from edgempi.comm import World
from edgempi.config.cluster import ClusterConfig
from edgempi.config.schema import Config
from edgempi.inference.floor import muted
from edgempi.inference.runner import Runner
from edgempi.lab.layout import describe
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.source import locate
from edgempi.models.weights import TORCH_DTYPES
from edgempi.ops.linear import Route, pick_route
from edgempi.parallel.batch import Batch
from edgempi.parallel.executor import Executor
from edgempi.plan.workload import Workload
from edgempi.profiling.process import forget_peak, peak_bytes, resident_bytes
from edgempi.tasks import Job
from edgempi.tasks.agreement import agreement
from edgempi.tasks.correction import check_save, save_corrected
from edgempi.tasks.figures import HEADERS, batches, beside_first, rank_figures, way_figures
from edgempi.tasks.model_job import PATIENCE, agree, locate_model
from edgempi.tasks.progress import told
from edgempi.tasks.tables import size, table
from edgempi.tasks.timing import trace_path, write_trace
from edgempi.tasks.verify import synthetic
from edgempi.tasks.ways import Planned, needs_bytes, plan_ways

ROOM_SHARE = 0.8
"""How much of a host's free memory the ways that are timed in turns may take together, where no budget is lent."""
FLOOR_ROUNDS = 3
TRACED_PASSES = 3


def prepare(config: Config) -> dict[str, Any]:
    """Plan every way for the synthetic batch, `data.batch` x `data.length`."""
    check_save(config)
    _, spec = locate_model(config)
    data = config.data
    work = Workload(data.batch, data.length, data.length if spec.enc and spec.dec else 0)
    ways = plan_ways(config, spec, work)
    return {"ways": [way.as_dict() for way in ways], "trace": trace_path(config.task.trace)}


def run(job: Job, world: World) -> dict[str, Any]:
    """Time the ways, as many in turns as fit in memory together."""
    config = job.config
    ways = [Planned.from_dict(way) for way in job.payload["ways"]]
    running = [way for way in ways if way.runs]
    folder = locate(config.model.path, config.model.revision)
    with Checkpoint(folder) as checkpoint, world.patience(PATIENCE):
        agree(world, {"edgempi version": edgempi.__version__, "checkpoint": checkpoint.fingerprint})
    before = resident_bytes()
    route = pick_route(TORCH_DTYPES[config.weights.dtype.value])  # once, so that all ways use the same kernels
    kernels_bytes = resident_bytes() - before
    needs = [[needs_bytes(way.job, rank)["peak"] for rank in range(world.size)] for way in running if way.job]
    found: dict[str, dict[str, Any]] = {}
    first: dict[str, Tensor] = {}
    for members in batches(needs, world.all_gather_json(_room_bytes(config.cluster, world))):
        loaded = [_load(world, running[way], folder, route, kernels_bytes, config.bench.floor) for way in members]
        _time(world, loaded, config)
        for one in loaded:
            outputs = one.runner.outputs(one.batch)
            first = first or outputs
            found[one.way.name] = {**_figures(world, one, config.cluster), **agreement(outputs, first, one.padding)}
            _trace(world, one, job.payload["trace"], len(running), config.cluster)
            one.runner.close()
        del loaded, one
        gc.collect()
    if not world.leads:
        return {}
    result = _result(config, ways, found)
    return {**result, "saved": save_corrected(config, result["ways"])}


def report(result: dict[str, Any], console: Console) -> None:
    """A row for each way, and one for each rank of it."""
    columns = ["way", "sharing", "wire", "overlap", "sub-tiles", "compute floor ms", "wire floor ms", "memory"]
    console.print(table(f"Ways, {result['headline']}", columns, [_plan_row(way) for way in result["ways"]], words=4))
    columns = [
        "way", "latency ms", "20-80 %", "times as fast", "over floor", "predicted", "off %", "relative error",
        "same argmax",
    ]  # fmt: skip
    console.print(table("Latency", columns, [_row(way) for way in result["ways"]]))
    columns = ["way", "device", "compute ms", "wire", "exposed", "hidden", "sent", "memory", "predicted"]
    rows = [row for way in result["ways"] for row in _rank_rows(way)]
    console.print(table("Ranks", columns, rows, words=2))
    for way in result["ways"]:
        if way["misfit"]:
            console.print(f"{way['name']}, by prediction: {way['misfit']}", markup=False)
    if result["saved"]:
        console.print(f"The profile, corrected: {result['saved']}", markup=False)
    if result["trace"]:
        console.print(f"Traces: {result['trace']} (open them in ui.perfetto.dev)", markup=False)


@dataclass
class _Loaded:
    """A way on this rank, ready, and what was measured of it."""

    way: Planned
    runner: Runner
    batch: Batch
    padding: Tensor | None
    floor: Executor | None
    peak_bytes: int
    rounds: list[dict[str, float]] = field(default_factory=list)
    floor_s: list[float] = field(default_factory=list)


def _load(world: World, way: Planned, folder: Path, route: Route, kernels_bytes: int, floor: bool) -> _Loaded:
    """Load and warm up, with the memory that this takes, the kernels' as if it were alone. Collective: every rank."""
    assert way.job is not None
    spec, work = way.job.spec, way.job.work
    ids, padding = synthetic(spec, work.rows, work.tokens)
    batch = Batch.of(spec, ids, padding)
    forget_peak()
    before = resident_bytes()
    runner = Runner(world, way.job.program, spec, folder, route)
    with world.patience(PATIENCE):
        world.barrier()
        runner.forward(batch)
    used_bytes = peak_bytes() - before + kernels_bytes
    return _Loaded(way, runner, batch, padding, muted(runner.prefill) if floor else None, used_bytes)


def _time(world: World, loaded: Sequence[_Loaded], config: Config) -> None:
    """Rounds in which every way runs once, in the first of them beside its floor. Collective: every rank."""
    rounds = range(config.task.repeats)
    for number in told(world, rounds, f"timing {', '.join(one.way.name for one in loaded)}"):
        for one in loaded:
            world.barrier()
            world.traffic.reset()
            wall_s = _seconds(one.runner.forward, one.batch)
            counted = world.traffic.as_dict()
            one.rounds.append({"wall_s": wall_s, "waited_s": counted["waited_s"], "bytes_sent": counted["bytes_sent"]})
            if one.floor is not None and number < FLOOR_ROUNDS:
                world.barrier()
                with torch.inference_mode():
                    one.floor_s.append(_seconds(one.floor.forward, one.batch))


def _seconds(forward: Callable[[Batch], object], batch: Batch) -> float:
    start = time.perf_counter()
    forward(batch)
    return time.perf_counter() - start


def _figures(world: World, one: _Loaded, cluster: ClusterConfig) -> dict[str, Any]:
    """What all ranks measured of a way. Collective: every rank; the result counts on rank 0."""
    assert one.way.job is not None
    mine = {
        "host": world.host,
        "walls_s": [taken["wall_s"] for taken in one.rounds],
        "peak_bytes": one.peak_bytes,
        "predicted_bytes": needs_bytes(one.way.job, world.rank)["peak"],
        "linear_route": one.runner.route,
        **rank_figures(one.rounds, one.floor_s, _payload_bits_per_s(cluster, world.rank, world.size)),
    }
    ranks = world.gather_json(mine)
    if ranks is None:
        return {}
    walls_s = [rank.pop("walls_s") for rank in ranks]
    return {**way_figures(ranks, walls_s), "overlap": one.runner.overlap, "ranks": ranks}


def _trace(world: World, one: _Loaded, path: str | None, ways: int, cluster: ClusterConfig) -> None:
    """A few more passes, recorded one after another; each way has a file of its own. Collective: every rank."""
    if path is None:
        return
    file = Path(path)
    named = file if ways == 1 else file.with_name(f"{file.stem}_{one.way.name}{file.suffix}")
    world.traffic.trace.start()
    for _ in range(TRACED_PASSES):
        world.barrier()
        one.runner.forward(one.batch)
    write_trace(world, str(named), list(cluster.named_devices()))


def _room_bytes(cluster: ClusterConfig, world: World) -> int:
    """What this rank may hold: what its device lends, or its part of what the machine has free."""
    lent = list(cluster.named_devices().values())[world.rank].memory_budget_bytes
    machine = "the lab's" if cluster.lab is not None else world.host
    sharers = world.all_gather_json(machine).count(machine)
    return lent or int(ROOM_SHARE * psutil.virtual_memory().available / sharers)


def _payload_bits_per_s(cluster: ClusterConfig, rank: int, ranks: int) -> float | None:
    """How fast the link out of a rank carries payload: shaped by the lab, or measured by the profile."""
    if cluster.lab is not None:
        line = describe(cluster).link_bits_per_s
        return None if line is None else line / HEADERS
    profile = known_profile(cluster)
    return profile.link(rank, (rank + 1) % ranks).bits_per_s if profile.links else None


def _result(config: Config, ways: Sequence[Planned], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    measured = next(iter(found.values()), None)
    rows = []
    for way in ways:
        figures = found.get(way.name)
        row: dict[str, Any] = {"name": way.name, "misfit": way.misfit, "predicted": way.predicted, "measured": figures}
        if way.job is not None:
            plan = way.job.program.prefill
            row |= {"plan": way.job.explained, "sharing": plan.name, "wire": plan.wire_dtype}
            row |= {"subtiles": plan.subtiles, "column_blocks": plan.column_blocks}
        if figures is not None and measured is not None:
            row["speed_up"] = beside_first(measured["rounds_s"], figures["rounds_s"])
            if way.predicted is not None:
                row["predicted_off"] = way.predicted["total_s"] / figures["latency_s"]["p50"] - 1
        rows.append(row)
    jobs = [way.job for way in ways if way.job is not None]
    headline = jobs[0].as_dict()["headline"].partition(", planned")[0] if jobs else "nothing fits"
    lab = config.cluster.lab
    return {
        "headline": headline,
        "model": config.model.path,
        "rows": config.data.batch,
        "tokens": config.data.length,
        "repeats": config.task.repeats,
        "devices": list(config.cluster.named_devices()),
        "time_scale": None if lab is None else lab.time_scale,
        "memory_scale": None if lab is None else lab.memory_scale,
        "memory_limit": None if lab is None else lab.memory_limit,
        "link_bits_per_s": None if lab is None else describe(config.cluster).link_bits_per_s,
        "trace": config.task.trace,
        "ways": rows,
    }


def _plan_row(way: dict[str, Any]) -> list[str]:
    figures = way["measured"]
    if figures is None:
        return [way["name"], "no plan fits", *["-"] * 6]
    return [
        way["name"], way["sharing"], way["wire"], figures["overlap"], str(way["subtiles"]),
        _ms(figures["compute_floor_s"]), _ms(figures["wire_floor_s"]), "fits" if way["misfit"] is None else "TOO MUCH",
    ]  # fmt: skip


def _row(way: dict[str, Any]) -> list[str]:
    figures = way["measured"]
    if figures is None:
        return [way["name"], *["-"] * 8]
    low, middle, high = (1e3 * figures["latency_s"][name] for name in ("p20", "p50", "p80"))
    predicted = way["predicted"]
    return [
        way["name"], f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{way['speed_up']['p50']:.2f}",
        _number(figures["over_floor"], ".2f"), "-" if predicted is None else _ms(predicted["total_s"]),
        _number(None if predicted is None else 100 * way["predicted_off"], "+.1f"),
        f"{figures['relative_error']:.1e}", f"{100 * figures['same_argmax']:.1f} %",
    ]  # fmt: skip


def _rank_rows(way: dict[str, Any]) -> list[list[str]]:
    if way["measured"] is None:
        return []
    return [
        [
            way["name"], plan["device"], _ms(rank["compute_s"]), _ms(rank["transfer_s"]), _ms(rank["waited_s"]),
            "-" if rank["hidden"] is None else f"{100 * rank['hidden']:.0f} %", size(rank["bytes_sent"]),
            size(rank["peak_bytes"]), size(rank["predicted_bytes"]),
        ]
        for plan, rank in zip(way["plan"], way["measured"]["ranks"], strict=True)
    ]  # fmt: skip


def _ms(seconds: float | None) -> str:
    return _number(None if seconds is None else 1e3 * seconds, ".1f")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
