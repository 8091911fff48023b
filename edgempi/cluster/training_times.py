"""What training was measured to take, and its place in a profile file: a section beside devices and links.

Layers are alike, so a device's times are those of a stack's first layer (with its embedding), an inner one, and the
last (with its norm, and the head): `enc.first`, `enc.inner`, `enc.last`, `dec.first` ... (`enc.only` where there is but
one). Each is a line over rows, forward and backward, with the backbone (`train`) and from the cache (`cached`).

Times hold for a technique with its sizes, the widths of a model, and the length of a row: a `Purpose`. A file may hold
several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from edgempi.cluster.entries import Entries, reading
from edgempi.cluster.profile import ElementTime
from edgempi.errors import UserError

PHASES = ("train", "cached")
REMEDY = "Measure again, or leave the section training out of the file"
MEASURE = "edgempi profile task.training=true"
"""What measures these times."""
_CHECKED = Entries(REMEDY)
_number, _entry, _wrong = _CHECKED.number, _CHECKED.entry, _CHECKED.wrong

Size = int | bool | None


@dataclass(frozen=True)
class RowTime:
    """Seconds of a pass: a fixed part, and a part for each row."""

    fixed_s: float
    row_s: float

    def seconds(self, rows: int) -> float:
        """Of some rows; nothing for none."""
        return self.fixed_s + rows * self.row_s if rows else 0.0


@dataclass(frozen=True)
class LayerTime:
    """One layer with the ends that go with it."""

    forward: RowTime
    backward: RowTime


@dataclass(frozen=True)
class Purpose:
    """What times were measured for.

    Attributes:
        model: family and widths, as `plan.training.measured.widths` words them; not the number of layers.
        technique: by its name.
        sizes: of the technique.
        tokens: of a row, in the stack that the head reads.
        memory_tokens: of the encoder beside it.
        weight_dtype: of frozen weights and activations.
        optimizer: whose step was measured.
    """

    model: str
    technique: str
    sizes: Mapping[str, Size]
    tokens: int
    memory_tokens: int
    weight_dtype: str
    optimizer: str


@dataclass(frozen=True)
class TrainingTimes:
    """What one device takes.

    Attributes:
        layers: by phase, and by the kind of layer.
        update: of the optimizer's step for the parameters of one layer, by their number.
    """

    layers: Mapping[str, Mapping[str, LayerTime]]
    update: ElementTime


@dataclass(frozen=True)
class TrainingProfile:
    """Times of all devices, in rank order, for one purpose."""

    purpose: Purpose
    devices: tuple[TrainingTimes, ...]


def find_training(profiles: Sequence[TrainingProfile], purpose: Purpose) -> TrainingProfile:
    """The times that were measured for a purpose.

    Raises:
        UserError: there are none; says in what the nearest differ, and how to measure.
    """
    for profile in profiles:
        if profile.purpose == purpose:
            return profile
    wanted = asdict(purpose)
    differences = [
        {key: value for key, value in asdict(profile.purpose).items() if value != wanted[key]} for profile in profiles
    ]
    nearest = min(differences, key=len, default={})
    said = ", ".join(f"{key} {value}" for key, value in nearest.items())
    raise UserError(
        "training times", value=f"measured for {said}" if said else "none in the profile",
        rule="times are for " + ", ".join(f"{key} {wanted[key]}" for key in nearest or wanted),
        remedy=f"Run {MEASURE} with this run's other overrides, which adds them to the profile, or fine-tune with what "
        "was measured",
    )  # fmt: skip


def with_training(profiles: Sequence[TrainingProfile], new: TrainingProfile) -> tuple[TrainingProfile, ...]:
    """All of them; what was measured for the same purpose gives way to the new one."""
    return (*(profile for profile in profiles if profile.purpose != new.purpose), new)


def training_to_list(profiles: Sequence[TrainingProfile]) -> list[dict[str, Any]]:
    """Plain JSON types."""
    return [
        {
            "purpose": {**asdict(profile.purpose), "sizes": dict(profile.purpose.sizes)},
            "devices": [asdict(times) for times in profile.devices],
        }
        for profile in profiles
    ]


def training_from_list(data: object, where: str = "training") -> tuple[TrainingProfile, ...]:
    """The times that `training_to_list` described.

    Raises:
        UserError: something is missing, too much, or no number; names it from `where` on.
    """
    found = []
    for i, item in enumerate(_list(data, where)):
        here = f"{where}[{i}]"
        entry = _entry(item, here, {"purpose", "devices"})
        devices = _list(entry["devices"], f"{here}.devices")
        times = tuple(_times(device, f"{here}.devices[{j}]") for j, device in enumerate(devices))
        found.append(TrainingProfile(_purpose(entry["purpose"], f"{here}.purpose"), times))
    return tuple(found)


def load_training(path: str) -> tuple[TrainingProfile, ...]:
    """The training times of a profile file; none where it has no such section.

    Raises:
        UserError: it cannot be read, or its section is not right; names the file.
    """
    with reading(path):
        data = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(data, Mapping) or "training" not in data:
            return ()
        found = training_from_list(data["training"])
        counted = len(_list(data.get("devices"), "devices"))
        for i, profile in enumerate(found):
            if len(profile.devices) != counted:
                raise _wrong(f"training[{i}].devices", len(profile.devices), f"one for each of the {counted} devices")
        return found


def _purpose(data: object, where: str) -> Purpose:
    entry = _entry(data, where, {field.name for field in fields(Purpose)})
    sizes = _entry(entry["sizes"], f"{where}.sizes", None)
    for name, value in sizes.items():
        if value is not None and not isinstance(value, int):
            raise _wrong(f"{where}.sizes.{name}", value, "a whole number, true, false or null")
    for name in ("model", "technique", "weight_dtype", "optimizer"):
        if not isinstance(entry[name], str):
            raise _wrong(f"{where}.{name}", entry[name], "a name")
    return Purpose(
        model=entry["model"],
        technique=entry["technique"],
        sizes=dict(sizes),
        tokens=int(_number(entry["tokens"], f"{where}.tokens")),
        memory_tokens=int(_number(entry["memory_tokens"], f"{where}.memory_tokens")),
        weight_dtype=entry["weight_dtype"],
        optimizer=entry["optimizer"],
    )


def _times(data: object, where: str) -> TrainingTimes:
    entry = _entry(data, where, {"layers", "update"})
    phases = _entry(entry["layers"], f"{where}.layers", None)
    odd = [phase for phase in phases if phase not in PHASES]
    if odd or "train" not in phases:
        raise _wrong(f"{where}.layers", ", ".join(map(str, phases)), "it has train, and cached where there is a cache")
    layers = {
        phase: {str(kind): _layer(time, f"{where}.layers.{phase}.{kind}") for kind, time in kinds.items()}
        for phase, kinds in ((p, _entry(k, f"{where}.layers.{p}", None)) for p, k in phases.items())
    }
    update = _entry(entry["update"], f"{where}.update", {field.name for field in fields(ElementTime)})
    return TrainingTimes(layers, ElementTime(**{k: _number(v, f"{where}.update.{k}") for k, v in update.items()}))


def _layer(data: object, where: str) -> LayerTime:
    entry = _entry(data, where, {"forward", "backward"})
    names = {field.name for field in fields(RowTime)}
    lines = {way: _entry(entry[way], f"{where}.{way}", names) for way in ("forward", "backward")}
    return LayerTime(**{
        way: RowTime(**{name: _number(value, f"{where}.{way}.{name}") for name, value in line.items()})
        for way, line in lines.items()
    })  # fmt: skip


def _list(data: object, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(where, type(data).__name__, "a list")
    return data
