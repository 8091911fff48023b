"""A ClusterProfile as YAML that a person can read, edit and give back (`cluster.profile=FILE`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from edgempi.cluster.entries import Entries, reading
from edgempi.cluster.profile import ClusterProfile, Device, DeviceMemory, DeviceTimes, ElementTime, LinearTime, Link
from edgempi.cluster.training_times import TrainingProfile, training_to_list
from edgempi.errors import UserError

FORMAT = "edgempi profile 1"
REMEDY = "Compare it with one that edgempi profile task.save=profile.yaml writes, or measure again"
_CHECKED = Entries(REMEDY)
_number, _entry, _wrong = _CHECKED.number, _CHECKED.entry, _CHECKED.wrong

Record = TypeVar("Record")


def profile_to_dict(profile: ClusterProfile) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "format": FORMAT,
        "weight_dtype": profile.weight_dtype,
        "settings": dict(profile.settings),
        "devices": [_device_to_dict(device) for device in profile.devices],
        "links": [asdict(link) for link in profile.links],
    }


def profile_to_yaml(profile: ClusterProfile, note: str = "", training: Sequence[TrainingProfile] = ()) -> str:
    """The text of a profile file.

    Args:
        profile: devices and links.
        note: says in a comment what they were measured on.
        training: what training takes; its section is there where there is something to say.
    """
    data = profile_to_dict(profile)
    if training:
        data["training"] = training_to_list(training)
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)
    return "".join(f"# {line}\n" for line in note.splitlines()) + text


def note_of(text: str) -> str:
    """The comment that a profile file begins with, as `profile_to_yaml` was given it."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line[1:].removeprefix(" ") for line in lines)


def profile_from_yaml(text: str) -> ClusterProfile:
    """The profile of a profile file; a `UserError` says what an edited one lacks."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            "profile file", value=str(error).splitlines()[0], rule="it is YAML", remedy="Correct the file"
        ) from error
    return profile_from_dict(data)


def profile_from_dict(data: object) -> ClusterProfile:
    """The profile that `profile_to_dict` described.

    Raises:
        UserError: the data is of another format, or lacks or has beside it what this one wants.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise UserError(
            "profile file", value=found, rule=f"it says format: {FORMAT}",
            remedy="Write one with edgempi profile task.save=profile.yaml",
        )  # fmt: skip
    devices = tuple(_device(entry, f"devices[{i}]") for i, entry in enumerate(_list(data, "devices")))
    links = tuple(_link(entry, f"links[{i}]", len(devices)) for i, entry in enumerate(_list(data, "links")))
    if len({(link.source, link.target) for link in links}) < len(links):
        raise _wrong("links", "a pair stands there twice", "each ordered pair of devices has one link")
    dtype = data.get("weight_dtype")
    if dtype not in (None, "fp32", "bf16"):
        raise _wrong("weight_dtype", dtype, "fp32, bf16 or null")
    settings = _entry(data.get("settings", {}), "settings", None)
    measured = {
        str(name): None if value is None else _number(value, f"settings.{name}") for name, value in settings.items()
    }
    return ClusterProfile(devices, links, dtype, measured)


def load_profile(path: str) -> ClusterProfile:
    """The profile of a file.

    Raises:
        UserError: it cannot be read, or is no profile; names the file.
    """
    with reading(path):
        return profile_from_yaml(Path(path).expanduser().read_text(encoding="utf-8"))


def _device_to_dict(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "host": device.host,
        "speed": device.speed,
        "memory_budget_bytes": device.memory_budget_bytes,
        "memory": None if device.memory is None else asdict(device.memory),
        "times": None if device.times is None else times_to_dict(device.times),
    }


def times_to_dict(times: DeviceTimes) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        **{kind: asdict(getattr(times, kind)) for kind in ("linear", "attention", "connective")},
        "wire": {name: asdict(taken) for name, taken in times.wire.items()},
        "transport": asdict(times.transport),
        "causal_share": times.causal_share,
    }


def _device(data: object, where: str) -> Device:
    entry = _entry(data, where, {"name", "host", "speed", "memory_budget_bytes", "memory", "times"})
    for key in ("name", "host"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise _wrong(f"{where}.{key}", entry[key], "a name")
    budget, memory, times = entry["memory_budget_bytes"], entry["memory"], entry["times"]
    return Device(
        name=entry["name"],
        host=entry["host"],
        speed=_number(entry["speed"], f"{where}.speed"),
        memory_budget_bytes=None if budget is None else int(_number(budget, f"{where}.memory_budget_bytes")),
        times=None if times is None else times_from_dict(times, f"{where}.times"),
        memory=None if memory is None else _memory(memory, f"{where}.memory"),
    )


def _memory(data: object, where: str) -> DeviceMemory:
    entry = _entry(data, where, {field.name for field in fields(DeviceMemory)})
    return DeviceMemory(**{key: int(_number(value, f"{where}.{key}")) for key, value in entry.items()})


def times_from_dict(data: object, where: str = "times") -> DeviceTimes:
    """The times that `times_to_dict` described; a `UserError` names what is wrong from `where` on."""
    entry = _entry(data, where, {"linear", "attention", "connective", "wire", "transport", "causal_share"})
    wire = _entry(entry["wire"], f"{where}.wire", None)
    return DeviceTimes(
        linear=_numbers(LinearTime, entry["linear"], f"{where}.linear"),
        attention=_numbers(ElementTime, entry["attention"], f"{where}.attention"),
        connective=_numbers(ElementTime, entry["connective"], f"{where}.connective"),
        wire={str(name): _numbers(ElementTime, taken, f"{where}.wire.{name}") for name, taken in wire.items()},
        transport=_numbers(ElementTime, entry["transport"], f"{where}.transport"),
        causal_share=_number(entry["causal_share"], f"{where}.causal_share"),
    )


def _link(data: object, where: str, size: int) -> Link:
    link = _numbers(Link, data, where)
    ends = (link.source, link.target)
    if any(end != int(end) or not 0 <= end < size for end in ends) or ends[0] == ends[1]:
        raise _wrong(where, f"from {link.source} to {link.target}", f"two of the devices 0 to {size - 1}")
    if link.bits_per_s == 0:
        raise _wrong(f"{where}.bits_per_s", link.bits_per_s, "above zero")
    return Link(int(link.source), int(link.target), link.latency_s, link.bits_per_s)


def _numbers(kind: type[Record], data: object, where: str) -> Record:
    """A record whose fields are all numbers."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    entry = _entry(data, where, names)
    return kind(**{name: _number(value, f"{where}.{name}") for name, value in entry.items()})


def _list(data: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = data.get(key)
    if not isinstance(found, list):
        raise _wrong(key, type(found).__name__, "a list")
    return found
