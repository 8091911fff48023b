"""`edgempi profile task.training=true`: what training takes on every device, for the planners of `edgempi finetune`.

Times hold for a technique with its sizes, an optimizer, a dtype, the widths of a model and the longest row: what
`finetune` is asked with the same overrides. All devices measure at the same time, on weights without meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console

from edgempi.cluster.training_times import TrainingProfile, training_from_list
from edgempi.comm import World
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.finetune.data.chosen import labels_of, task_of
from edgempi.finetune.noise import noise_trunk
from edgempi.finetune.profile import Measured, measure_training
from edgempi.finetune.question import Question
from edgempi.finetune.settings import optimizing_of
from edgempi.finetune.techniques.head import task_head
from edgempi.finetune.trunk import Trunk
from edgempi.models.allocator import give_back
from edgempi.models.weights import TORCH_DTYPES
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.asked import kept_of, tuning_of, work_of
from edgempi.plan.training.measured import purpose_of
from edgempi.plan.training.technique import trained_elements
from edgempi.plan.workload import Workload
from edgempi.tasks.model_job import PATIENCE
from edgempi.tasks.tables import table

LAYER_COLUMNS = ("device", "layer", "forward ms", "a row", "backward ms", "a row", "off %")
"""A pass takes a part whatever the rows, and a part for each row; off: how far the fits of forward and of backward are,
by their medians and worst cases."""
UPDATE_COLUMNS = ("device", "a layer us", "a parameter ns", "off %", "slowdown", "rounds")


def ask_training(config: Config, spec: ModelSpec) -> dict[str, Any]:
    """What is to be measured, in JSON types: the model with the head of the task, the longest row, the purpose.

    Raises:
        UserError: the technique does not fit the model, the optimizer or the task is not said right, or the model has
            no positions for such rows.
    """
    tuning, rows = tuning_of(config.technique), config.finetune_data
    optimizing_of(config.optimizer, config.technique)
    tuned = task_head(spec, labels_of(task_of(rows), spec)).applied(spec)
    work = work_of(rows, tuned)
    longest = max(work.tokens, work.memory_tokens)
    if tuned.max_tokens is not None and longest > tuned.max_tokens:
        raise UserError(
            "rows to train on", value=f"up to {longest} tokens",
            rule=f"the model has positions for {tuned.max_tokens}",
            remedy=f"Set finetune_data.max_tokens={tuned.max_tokens}, or less",
        )  # fmt: skip
    kept = kept_of(config.weights.dtype.value, config.optimizer, config.cache, tuned)
    purpose = purpose_of(tuned, tuning, work, kept)
    return {
        "spec": tuned.as_dict(),
        "work": asdict(work),
        "trained": trained_elements(tuned, tuning),
        "purpose": {**asdict(purpose), "sizes": dict(purpose.sizes)},
    }


def measure_together(
    config: Config, asked: Mapping[str, Any], world: World, room_bytes: float, told: Callable[[float], None]
) -> dict[str, Any] | None:
    """Measure this device while the others measure themselves. Collective: every rank.

    Args:
        config: of the job.
        asked: what `ask_training` said.
        world: all ranks.
        room_bytes: memory that this device may take for it.
        told: called now and then with the part that is over.

    Returns:
        On rank 0 `purpose`, `trained`, and of each of the `devices` its `device`, `times` and how they were measured;
        None elsewhere.

    Raises:
        UserError: a device's memory does not hold one layer; it is named.
    """
    name = list(config.cluster.named_devices())[world.rank]
    spec, tuning = ModelSpec.from_dict(asked["spec"]), tuning_of(config.technique)
    dtype = TORCH_DTYPES[config.weights.dtype.value]
    question = Question(
        spec, tuning, Workload(**asked["work"]), optimizing_of(config.optimizer, config.technique), dtype, room_bytes,
        config.task.seconds,
    )  # fmt: skip

    def build(units: tuple[str, ...], backbone: bool) -> Trunk:
        return noise_trunk(spec, units, tuning, dtype, backbone)

    world.barrier()
    try:
        found = measure_training(build, question, told)
    except UserError as error:
        raise UserError(
            f"{name}, {error.what}", value=error.value, rule=error.rule, remedy=error.remedy
        ) from error  # fmt: skip
    give_back()
    with world.patience(PATIENCE):
        devices = world.gather_json({"device": name, **_plain(found)})
    return None if devices is None else {"purpose": asked["purpose"], "trained": asked["trained"], "devices": devices}


def training_of(result: Mapping[str, Any]) -> TrainingProfile:
    """What `measure_together` found, as it stands in a profile file."""
    times = [device["times"] for device in result["devices"]]
    (found,) = training_from_list([{"purpose": result["purpose"], "devices": times}])
    return found


def print_training_times(console: Console, result: Mapping[str, Any]) -> None:
    """The tables of what `measure_together` found."""
    purpose, devices = result["purpose"], result["devices"]
    lengths = " and ".join(str(purpose[name]) for name in ("memory_tokens", "tokens") if purpose[name])
    for phase, title in (("train", "with the backbone"), ("cached", "from the cache")):
        rows = [
            [device["device"], kind, *_line(layer, device["residuals"], f"{phase} {kind}")]
            for device in devices
            for kind, layer in device["times"]["layers"].get(phase, {}).items()
        ]
        if rows:
            title = f"A layer in training by {purpose['technique']}, {title} (rows of {lengths} tokens)"
            console.print(table(title, LAYER_COLUMNS, rows, words=2))
    rows = [
        [
            device["device"], f"{1e6 * device['times']['update']['call_s']:.0f}",
            f"{1e9 * device['times']['update']['s_per_element']:.2f}", _off(device["residuals"]["update"]),
            f"{device['slowdown']:.2f}", str(device["rounds"]),
        ]
        for device in devices
    ]  # fmt: skip
    console.print(
        table(f"A step of {purpose['optimizer']} ({result['trained']:,} parameters in all)", UPDATE_COLUMNS, rows)
    )


def _line(layer: Mapping[str, Any], residuals: Mapping[str, Any], name: str) -> list[str]:
    ways = ("forward", "backward")
    told = [f"{1e3 * layer[way][part]:.3f}" for way in ways for part in ("fixed_s", "row_s")]
    return [*told, ", ".join(_off(residuals[f"{name} {way}"]) for way in ways)]


def _off(residuals: Mapping[str, float]) -> str:
    return f"{100 * residuals['median']:.0f}, {100 * residuals['worst']:.0f}"


def _plain(found: Measured) -> dict[str, Any]:
    """JSON types."""
    return {
        "times": asdict(found.times),
        "residuals": {name: asdict(off) for name, off in found.residuals.items()},
        "layers": dict(found.layers),
        "rounds": found.rounds,
        "slowdown": found.slowdown,
    }
