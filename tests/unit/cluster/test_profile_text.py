"""Profile files: there and back, and what an edited one is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgempi.cluster.known import known_profile, profiled_settings
from edgempi.cluster.profile import ClusterProfile, Device, DeviceMemory, DeviceTimes, ElementTime, LinearTime, Link
from edgempi.cluster.profile_text import note_of, profile_from_yaml, profile_to_dict, profile_to_yaml
from edgempi.config.cluster import ClusterConfig, DeviceConfig, LabConfig
from edgempi.errors import UserError

SECONDS = st.floats(0, 1e3)
ELEMENTS = st.builds(ElementTime, SECONDS, SECONDS)
TIMES = st.builds(
    DeviceTimes,
    linear=st.builds(LinearTime, SECONDS, SECONDS, SECONDS),
    attention=ELEMENTS,
    connective=ELEMENTS,
    wire=st.dictionaries(st.sampled_from(["fp32", "bf16", "int8"]), ELEMENTS),
    transport=ELEMENTS,
    causal_share=st.floats(0, 1),
)
BYTES = st.integers(0, 10**12)
DEVICES = st.builds(
    Device,
    name=st.text(min_size=1),
    host=st.text(min_size=1),
    speed=SECONDS,
    memory_budget_bytes=st.none() | st.integers(1, 10**12),
    times=st.none() | TIMES,
    memory=st.none() | st.builds(DeviceMemory, BYTES, BYTES, BYTES),
)


@st.composite
def profiles(draw: st.DrawFn) -> ClusterProfile:
    devices = draw(st.lists(DEVICES, min_size=1, max_size=3))
    pairs = [(a, b) for a in range(len(devices)) for b in range(len(devices)) if a != b]
    measured = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    links = [Link(a, b, draw(SECONDS), draw(st.floats(1, 1e12))) for a, b in measured]
    settings = draw(st.dictionaries(st.sampled_from(["threads_per_rank", "lab.time_scale"]), st.none() | SECONDS))
    return ClusterProfile(tuple(devices), tuple(links), draw(st.sampled_from([None, "fp32", "bf16"])), settings)


@given(profiles(), st.text(alphabet="abc \n"))
def test_there_and_back(profile: ClusterProfile, note: str) -> None:
    assert profile_from_yaml(profile_to_yaml(profile, note)) == profile


def example(names: tuple[str, ...] = ("big", "small")) -> ClusterProfile:
    element = ElementTime(1e-5, 2e-9)
    times = DeviceTimes(LinearTime(1e-5, 1e-11, 1e-10), element, element, {"fp32": element})
    memory = DeviceMemory(250 * 10**6, 40 * 10**6, 10**9)
    devices = tuple(Device(name, f"{name}.local", times=times, memory=memory) for name in names)
    size = range(len(names))
    links = tuple(Link(a, b, 1e-4, 1e9) for a in size for b in size if a != b)
    return ClusterProfile(devices, links, "fp32")


def test_the_note_of_a_file() -> None:
    for note in ("", "Measured on blocks of x, 8 tokens.", "two\n\n  lines"):
        assert note_of(profile_to_yaml(example(), note)) == note


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "edgempi profile 9", "format: edgempi profile 1"),
        ("devices", {}, "devices: dict"),
        ("devices.0", "big", "devices[0]: str"),
        ("devices.0.name", "", "devices[0].name"),
        ("devices.0.speed", "fast", "devices[0].speed: fast"),
        ("devices.0.times.linear.s_per_flop", -1.0, "devices[0].times.linear.s_per_flop: -1.0"),
        ("devices.0.times.linear.s_per_flop", float("nan"), "linear.s_per_flop: nan"),
        ("devices.0.times.linear.extra", 1.0, "linear: has call_s"),
        ("devices.0.times.attention", None, "devices[0].times.attention"),
        ("devices.0.times.wire.fp32.call_s", True, "wire.fp32.call_s: True"),
        ("devices.0.memory.import_bytes", "1 GB", "devices[0].memory.import_bytes"),
        ("links.0.target", 2, "links[0]: from 0 to 2"),
        ("links.0.target", 0, "links[0]: from 0 to 0"),
        ("links.0.bits_per_s", 0, "links[0].bits_per_s: 0; above zero"),
        ("links.1", {"source": 0, "target": 1, "latency_s": 0.0, "bits_per_s": 1.0}, "twice"),
        ("weight_dtype", "int4", "weight_dtype: int4"),
    ],
)
def test_what_an_edited_file_is_told(path: str, value: object, said: str) -> None:
    data = profile_to_dict(example())
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = data
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(UserError) as error:
        profile_from_yaml(yaml.safe_dump(data))
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\t", "format: edgempi program 1"])
def test_what_is_no_profile(text: str) -> None:
    with pytest.raises(UserError, match="profile file"):
        profile_from_yaml(text)


def _config(path: Path, *names: str) -> ClusterConfig:
    devices = {name: DeviceConfig(host="elsewhere", speed=3.0, memory_budget_bytes=5) for name in names}
    return ClusterConfig(devices=devices, profile=str(path))


def test_the_configuration_brings_measured_times(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(example()))
    found = known_profile(_config(path, "big", "small"))
    assert found.measured
    assert found.weight_dtype == "fp32"
    assert found.links == example().links
    assert [d.times for d in found.devices] == [d.times for d in example().devices]
    # What may have changed since is the configuration's.
    assert [(d.host, d.speed, d.memory_budget_bytes) for d in found.devices] == [("elsewhere", 3.0, 5)] * 2


@pytest.mark.parametrize("names", [("big",), ("small", "big"), ("big", "small", "third"), ("big", "other")])
def test_a_profile_of_other_devices(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(example()))
    with pytest.raises(UserError, match="measured on big, small; the cluster is"):
        known_profile(_config(path, *names))


def test_a_profile_of_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    config = _config(path, "big", "small")
    config.lab = LabConfig(time_scale=2.0)
    path.write_text(profile_to_yaml(replace(example(), settings=profiled_settings(config))))
    assert known_profile(config).measured
    for lab, said in (
        (LabConfig(time_scale=1.0), "measured with lab.time_scale=2; this cluster has lab.time_scale=1"),
        (LabConfig(bandwidth_bits_per_s=None), "measured with lab.bandwidth_bits_per_s=125000000; this .*=null"),
    ):
        with pytest.raises(UserError, match=said):
            known_profile(replace(config, lab=lab))
    with pytest.raises(UserError, match="measured with threads_per_rank=1; this cluster has threads_per_rank=4"):
        known_profile(replace(config, threads_per_rank=4))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        known_profile(_config(tmp_path / "nowhere.yaml", "big"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes: not a text file"):
        known_profile(_config(tmp_path / "bytes", "big"))
    (tmp_path / "other.yaml").write_text("format: 1\n")
    with pytest.raises(UserError, match=r"other.yaml: profile file"):
        known_profile(_config(tmp_path / "other.yaml", "big"))
