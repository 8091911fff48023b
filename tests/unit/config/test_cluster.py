"""The configuration of devices: what it refuses, and what an emulated device lends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgempi.config.cluster import ClusterConfig, DeviceConfig, LabConfig
from edgempi.errors import UserError


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DeviceConfig(speed=-1.0), "device speed: -1.0; a speed is a finite number from zero"),
        (lambda: DeviceConfig(speed=float("nan")), "device speed: nan"),
        (lambda: DeviceConfig(threads=0), "device threads: 0; at least 1"),
        (lambda: DeviceConfig(memory_budget_bytes=0), "device memory_budget_bytes: 0; a budget is above zero"),
        (lambda: LabConfig(time_scale=0.0), "cluster.lab.time_scale: 0.0; above zero"),
        (lambda: ClusterConfig(ranks=0), "cluster.ranks: 0; at least one rank"),
        (lambda: ClusterConfig(timeout_s=0.0), "cluster.timeout_s: 0.0; above zero"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_devices_have_names_and_lend_what_they_may() -> None:
    assert list(ClusterConfig(ranks=3).named_devices()) == ["device0", "device1", "device2"]
    local = ClusterConfig(ranks=1, memory_budget_bytes=5).named_devices()
    assert local["device0"].memory_budget_bytes == 5
    devices = {"a": DeviceConfig(memory_budget_bytes=10), "b": DeviceConfig()}
    lent = ClusterConfig(devices=devices, lab=LabConfig(memory_scale=2.0)).named_devices()
    assert [device.memory_budget_bytes for device in lent.values()] == [20, None]
    free = ClusterConfig(devices=devices, lab=LabConfig(memory_limit=False)).named_devices()
    assert [device.memory_budget_bytes for device in free.values()] == [None, None]
