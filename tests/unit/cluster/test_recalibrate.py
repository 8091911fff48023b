"""A run corrects a profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.cluster.profile import ClusterProfile
from edgempi.cluster.recalibrate import recalibrate
from unit.cluster.test_profile_text import example


def test_devices_follow_the_run_and_links_stay() -> None:
    profile = example(("a", "b", "c"))
    found = recalibrate(profile, [2.0, 1.0, 1.0], [3.0, 1.0, 0.5])
    for device, before, factor in zip(found.devices, profile.devices, (1.5, 1.0, 0.5), strict=True):
        assert device.times is not None
        assert before.times is not None
        assert device.times.linear.seconds(10, 20, 30) == pytest.approx(
            factor * before.times.linear.seconds(10, 20, 30)
        )
        for kind in ("attention", "connective"):
            was, now = getattr(before.times, kind), getattr(device.times, kind)
            assert now.seconds(100) == pytest.approx(factor * was.seconds(100))
        assert device.times.wire["fp32"].seconds(7) == pytest.approx(factor * before.times.wire["fp32"].seconds(7))
        assert device.times.transport.seconds(7) == pytest.approx(factor * before.times.transport.seconds(7))
    assert found.links == profile.links


@pytest.mark.parametrize(("predicted_s", "measured_s"), [(0.0, 1.0), (1.0, 0.0), (2.0, 2.0)])
def test_what_is_not_known_changes_nothing(predicted_s: float, measured_s: float) -> None:
    profile = example()
    assert recalibrate(profile, [predicted_s] * 2, [measured_s] * 2) == profile


def test_a_device_without_times_stays_so() -> None:
    profile = example()
    unmeasured = ClusterProfile(tuple(replace(device, times=None) for device in profile.devices))
    assert recalibrate(unmeasured, [1.0] * 2, [2.0] * 2) == unmeasured


def test_one_run_of_another_number_of_devices_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        recalibrate(example(), [1.0] * 3, [1.0] * 3)
