from __future__ import annotations

import pytest

from edgempi.config.cluster import ClusterConfig, DeviceConfig, LabConfig
from edgempi.config.load import compose
from edgempi.errors import UserError
from edgempi.lab.layout import Lan, describe

ENVIRONMENTS = {"a": "mm", "b": "mmm", "c": "mmmm", "d": "lm", "e": "ls", "f": "lms"}
FLOP_PER_BIT = 133


def _cluster(*overrides: str) -> ClusterConfig:
    return compose(list(overrides)).cluster


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environments_of_the_paper(name: str) -> None:
    lan = describe(_cluster(f"cluster=lab_{name}"))
    assert "".join(host.removeprefix("nano-")[0] for host in lan.hosts) == ENVIRONMENTS[name]
    assert len({device.address for device in lan.devices}) == len(lan.devices)
    memory = {"s": 900_000_000, "m": 1_500_000_000, "l": 1_900_000_000}
    rate = {"s": 403, "m": 825, "l": 1470}
    for device in lan.devices:
        kind = device.host[5]
        assert device.memory_bytes == memory[kind]
        assert device.flops / rate[kind] == pytest.approx(lan.devices[0].flops / rate[lan.hosts[0][5]])


@pytest.mark.parametrize("scale", ["1", "2", "3.5"])
def test_a_nano_m_does_133_flop_per_link_bit_at_every_scale(scale: str) -> None:
    lan = describe(_cluster("cluster=lab_a", f"cluster.lab.time_scale={scale}"))
    assert lan.link_bits_per_s == 125e6 * float(scale)
    assert lan.devices[0].flops / lan.link_bits_per_s == pytest.approx(FLOP_PER_BIT, rel=0.05)


def test_memory_may_be_scaled_or_lifted_for_planners_and_devices_alike() -> None:
    scaled = _cluster("cluster=lab_e", "cluster.lab.memory_scale=2")
    assert [device.memory_bytes for device in describe(scaled).devices] == [3_800_000_000, 1_800_000_000]
    assert [d.memory_budget_bytes for d in scaled.named_devices().values()] == [3_800_000_000, 1_800_000_000]
    lifted = _cluster("cluster=lab_e", "cluster.lab.memory_limit=false")
    assert {d.memory_budget_bytes for d in lifted.named_devices().values()} == {None}


def test_budgets_of_real_devices_are_theirs() -> None:
    cluster = ClusterConfig(devices={"pc": DeviceConfig(host="pc", memory_budget_bytes=7)})
    assert cluster.named_devices()["pc"].memory_budget_bytes == 7


def test_links_may_be_unshaped() -> None:
    assert describe(_cluster("cluster=lab_a", "cluster.lab.bandwidth_bits_per_s=null")).link_bits_per_s is None


def test_it_survives_json() -> None:
    lan = describe(_cluster("cluster=lab_f"))
    assert Lan.from_dict(lan.as_dict()) == lan


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (ClusterConfig(), "Add cluster=lab_a"),
        (ClusterConfig(lab=LabConfig()), "host localhost"),
        (ClusterConfig(lab=LabConfig(), devices={"a": DeviceConfig("x"), "b": DeviceConfig("x")}), "host x"),
        (ClusterConfig(lab=LabConfig(), devices={"a": DeviceConfig("head")}), "host head"),
        (ClusterConfig(lab=LabConfig(), devices={f"d{i}": DeviceConfig(f"d{i}") for i in range(33)}), "33 devices"),
    ],
)
def test_what_makes_no_lab(cluster: ClusterConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        describe(cluster)


@pytest.mark.parametrize("name", ["time_scale", "bandwidth_bits_per_s", "memory_scale", "flops_per_speed"])
def test_factors_are_above_zero(name: str) -> None:
    with pytest.raises(UserError, match=f"cluster.lab.{name}"):
        LabConfig(**{name: 0.0})
