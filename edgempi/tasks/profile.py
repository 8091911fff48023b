"""`edgempi profile`: measure every device and every link for a model and a length, for planners that need times.

All devices measure at the same time, as they will work at the same time: what they share (a host, a wire) is then
shared in the figures too.

With `task.training=true` the profile also says what training takes (`profile_training`). Where the file is there
already, that alone is measured, and added: one file serves inference and several ways of training.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from edgempi.cluster.known import known_profile, profiled_settings
from edgempi.cluster.profile import ClusterProfile, Device, DeviceMemory, ElementTime, Link
from edgempi.cluster.profile_text import (
    load_profile,
    note_of,
    profile_to_dict,
    profile_to_yaml,
    times_from_dict,
    times_to_dict,
)
from edgempi.cluster.training_times import TrainingProfile, load_training, with_training
from edgempi.comm import World
from edgempi.comm.probe import moving_s, shared_links
from edgempi.config.cluster import ClusterConfig
from edgempi.config.files import write_atomic
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.models.allocator import give_back
from edgempi.models.source import locate, read_spec
from edgempi.models.weights import TORCH_DTYPES
from edgempi.ops.linear import Linear, pick_route
from edgempi.plan.memory import ITEM_BYTES
from edgempi.plan.spec import ModelSpec
from edgempi.profiling.compute import Compute, measure_compute
from edgempi.profiling.process import resident_bytes
from edgempi.tasks import Job
from edgempi.tasks.model_job import PATIENCE, check_length
from edgempi.tasks.profile_training import ask_training, measure_together, print_training_times, training_of
from edgempi.tasks.progress import EVERY_S, told
from edgempi.tasks.tables import size, table

ROOM_SHARE = 0.5
"""How much of the memory that a device lends, or has free, the measured weights may take."""
TRAINING_SHARE = 0.8
"""How much of it the layers may take that are trained: all that they keep is counted, and there is no second copy."""
FILE = "profile.yaml"
DEVICE_COLUMNS = (
    "device", "linears", "GFLOP/s", "GB/s", "call us", "attention ns", "connective ns", "codecs ns", "moving ns",
    "slowdown", "off %",
)  # fmt: skip
"""GB/s: of weights, read beside the products; ns: per element, of the codecs for fp32, bf16 and int8, and, of moving,
per byte sent and another received; off: how far the fits of linears and of attention are, by their medians and worst
cases."""
BLOCK_COLUMNS = ("device", "block", "share", "measured ms", "fitted ms", "error %")
"""The share is of heads, of columns, or, in the connective block, of tokens."""
RESIDUALS = (("linear", "median"), ("linear", "worst"), ("attention", "median"), ("attention", "worst"))


def prepare(config: Config) -> dict[str, Any]:
    """Read the model's configuration; find out what is to be measured, and where the profile goes."""
    path = _target(config)
    spec = read_spec(locate(config.model.path, config.model.revision))
    training = ask_training(config, spec) if config.task.training else None
    base = _base(config.cluster, path) if config.task.training else None
    if base is None:
        check_length(spec, config.data.length, "measured")
    return {"spec": spec.as_dict(), "save": str(path), "base": base, "training": training}


def run(job: Job, world: World) -> dict[str, Any]:
    """Measure this device, then the links, then training; rank 0 saves the profile."""
    config, payload = job.config, job.payload
    base, save = payload["base"], payload["save"]
    result = None if base else _measure(job, world)
    training: dict[str, Any] | None = None
    if payload["training"] is not None:
        room_bytes = _room_bytes(config, world, TRAINING_SHARE)
        training = measure_together(config, payload["training"], world, room_bytes, _teller(world, "training"))
    if not world.leads:
        return {}
    if base is None:
        assert result is not None
        profile, found = result
        note, known = f"Measured on blocks of {config.model.path}, {config.data.length} tokens.", _left(config, save)
    else:
        profile, found = load_profile(base), {}
        note, known = note_of(Path(base).read_text(encoding="utf-8")), load_training(base)
    if training is not None:
        known = with_training(known, training_of(training))
    write_atomic(save, profile_to_yaml(profile, note, known))
    return {**found, "training": training, "saved": save}


def _target(config: Config) -> Path:
    """Where the profile goes.

    Raises:
        UserError: its folder is not there.
    """
    adds = config.task.save is None and config.task.training
    key, named = ("cluster.profile", config.cluster.profile) if adds else ("task.save", config.task.save)
    path = Path(named).expanduser() if named else Path(config.output.directory or ".") / FILE
    if not path.parent.is_dir():
        raise UserError(key, value=path, rule="its folder is there", remedy="Name a file in a folder that exists")
    return path


def _base(cluster: ClusterConfig, path: Path) -> str | None:
    """The profile that training is added to: the cluster's, or what is where the new one goes; None: there is none yet.

    Raises:
        UserError: it is no profile, or one of other devices or settings.
    """
    path = Path(cluster.profile).expanduser() if cluster.profile else path
    if not path.exists():
        return None
    try:
        known_profile(replace(cluster, profile=str(path)))
        load_training(str(path))
    except UserError as error:
        remedy = f"{error.remedy}; a file that is not there yet is measured whole"
        raise UserError(error.what, value=error.value, rule=error.rule, remedy=remedy) from error
    return str(path)


def _left(config: Config, path: str) -> tuple[TrainingProfile, ...]:
    """Training times of the file that is about to be replaced: they still hold, if it is of these devices."""
    try:
        known_profile(replace(config.cluster, profile=path))
        return load_training(path)
    except UserError:
        return ()


def _room_bytes(config: Config, world: World, share: float) -> float:
    """What this device may take for measuring; collective."""
    free_bytes = psutil.virtual_memory().available
    lent = list(config.cluster.named_devices().values())[world.rank].memory_budget_bytes
    sharers = world.all_gather_json(world.host).count(world.host)
    return share * (lent or free_bytes / sharers)


def _measure(job: Job, world: World) -> tuple[ClusterProfile, dict[str, Any]] | None:
    """Measure the blocks of inference, and the links. Collective: every rank.

    Returns:
        On rank 0 the profile, and what there is to report of it; None elsewhere.
    """
    config = job.config
    spec = ModelSpec.from_dict(job.payload["spec"])
    named = config.cluster.named_devices()
    import_bytes, free_bytes = resident_bytes(), psutil.virtual_memory().available
    room_bytes = _room_bytes(config, world, ROOM_SHARE)
    dtype, length = config.weights.dtype.value, config.data.length
    world.barrier()
    tell = _teller(world, "blocks")
    compute = measure_compute(spec, TORCH_DTYPES[dtype], length, config.task.seconds, room_bytes, tell)
    give_back()
    memory = DeviceMemory(import_bytes, max(0, resident_bytes() - import_bytes), free_bytes)
    with world.patience(PATIENCE):
        measured = world.all_gather_json(_plain(compute, memory))
    links = [Link(**link) for d in told(world, range(1, world.size), "links") for link in shared_links(world, d)]
    moving = world.all_gather_json(_moving_s(world, spec, TORCH_DTYPES[dtype], length, links))
    if not world.leads:
        return None
    devices = tuple(
        Device(
            name, device.host, device.speed, device.memory_budget_bytes,
            times=replace(times_from_dict(found["times"]), transport=ElementTime(0.0, s_per_byte)),
            memory=DeviceMemory(**found["memory"]),
        )
        for (name, device), found, s_per_byte in zip(named.items(), measured, moving, strict=True)
    )  # fmt: skip
    profile = ClusterProfile(devices, tuple(links), dtype, profiled_settings(config.cluster))
    result = profile_to_dict(profile)
    extra = ("residuals", "blocks", "route", "slowdown", "rounds")
    result["devices"] = [
        {**device, **{key: found[key] for key in extra}}
        for device, found in zip(result["devices"], measured, strict=True)
    ]
    return profile, {**result, "length": length}


def _moving_s(world: World, spec: ModelSpec, dtype: torch.dtype, length: int, links: Sequence[Link]) -> float:
    """What moving a byte takes from products as a device's share has them; collective."""
    if not links:
        return 0.0
    width = spec.stacks[spec.last].width
    linear = Linear(torch.randn(width, width).to(dtype), None, pick_route(dtype))
    x = torch.randn(max(1, length // world.size), width).to(dtype)
    with torch.inference_mode():
        return moving_s(world, lambda: linear(x), min(link.bits_per_s for link in links))


def report(result: dict[str, Any], console: Console) -> None:
    """What each device takes, how well that says what whole blocks take, the links, and training."""
    if "devices" in result:
        _print_blocks(result, console)
    if result["training"] is not None:
        print_training_times(console, result["training"])
    file = result["saved"]
    console.print(f"Saved to {file}; plan with it by cluster.profile={file}", soft_wrap=True, markup=False)


def _print_blocks(result: dict[str, Any], console: Console) -> None:
    devices = result["devices"]
    console.print(table(f"Devices ({result['weight_dtype']}, {result['length']} tokens)", DEVICE_COLUMNS, [
        _device_row(device, ITEM_BYTES[result["weight_dtype"]]) for device in devices
    ]))  # fmt: skip
    console.print(table("Memory", ["device", "imports", "libraries in use", "free", "budget"], [
        [
            device["name"], *(size(device["memory"][key]) for key in ("import_bytes", "runtime_bytes", "free_bytes")),
            "-" if device["memory_budget_bytes"] is None else size(device["memory_budget_bytes"]),
        ]
        for device in devices
    ]))  # fmt: skip
    rows = [row for device in devices for row in _block_rows(device)]
    console.print(table("Blocks of one layer, measured whole and by the fits", BLOCK_COLUMNS, rows, words=2))
    if result["links"]:
        rows = [
            [
                f"{devices[link['source']]['name']} to {devices[link['target']]['name']}",
                f"{link['latency_s'] * 1e6:.0f} us", f"{link['bits_per_s'] / 1e6:,.1f} Mbit/s",
            ]
            for link in result["links"]
        ]  # fmt: skip
        console.print(table("Links (while all send and receive)", ["from", "latency", "payload"], rows))


def _device_row(device: dict[str, Any], item_bytes: int) -> list[str]:
    times, off = device["times"], device["residuals"]
    linear = times["linear"]
    per_element = [1e9 * times[kind]["s_per_element"] for kind in ("attention", "connective")]
    codecs = [f"{1e9 * taken['s_per_element']:.2f}" for taken in times["wire"].values()]
    return [
        device["name"], device["route"], f"{_inverse(linear['s_per_flop']) / 1e9:.1f}",
        f"{_inverse(linear['s_per_weight']) * item_bytes / 1e9:.1f}", f"{1e6 * linear['call_s']:.0f}",
        *(f"{value:.3f}" for value in per_element), ", ".join(codecs),
        f"{1e9 * times['transport']['s_per_element']:.2f}", f"{device['slowdown']:.2f}",
        ", ".join(f"{100 * off[kind][which]:.0f}" for kind, which in RESIDUALS),
    ]  # fmt: skip


def _block_rows(device: dict[str, Any]) -> list[list[str]]:
    return [
        [
            device["name"], block["block"], f"{block['share']:.2f}", f"{1e3 * block['measured_s']:.2f}",
            f"{1e3 * block['fitted_s']:.2f}", f"{100 * (block['fitted_s'] / block['measured_s'] - 1):+.1f}",
        ]
        for block in device["blocks"]
    ]  # fmt: skip


def _inverse(value: float) -> float:
    return 1 / value if value else 0.0


def _plain(compute: Compute, memory: DeviceMemory) -> dict[str, Any]:
    """JSON types."""
    return {
        "times": times_to_dict(compute.times),
        "memory": asdict(memory),
        "residuals": {kind: asdict(off) for kind, off in compute.residuals.items()},
        "blocks": [asdict(block) for block in compute.blocks],
        "route": compute.route,
        "slowdown": compute.slowdown,
        "rounds": compute.rounds,
    }


def _teller(world: World, what: str) -> Callable[[float], None]:
    """Says now and then how far the measuring is, on the rank that talks to a person."""
    last = time.perf_counter()

    def tell(over: float) -> None:
        nonlocal last
        if world.leads and time.perf_counter() - last > EVERY_S:
            last = time.perf_counter()
            sys.stderr.write(f"edgempi: {what}: {over:.0%} measured\n")
            sys.stderr.flush()

    return tell
