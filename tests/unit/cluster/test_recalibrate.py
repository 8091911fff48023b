"""A run corrects a profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.cluster.profile import ClusterProfile
from edgempi.cluster.recalibrate import Busy, recalibrate
from unit.cluster.test_profile_text import example


def test_devices_and_links_follow_the_run() -> None:
    profile = example(("a", "b", "c"))
    predicted = [Busy(2.0, 1.0), Busy(1.0, 1.0), Busy(1.0, 1.0)]
    measured = [Busy(3.0, 2.0), Busy(1.0, 0.5), Busy(0.5, 1.0)]
    found = recalibrate(profile, predicted, measured)
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
    for link in found.links:
        assert link.bits_per_s == pytest.approx(1e9 / (2.0, 0.5, 1.0)[link.source])
        assert link.latency_s == profile.links[0].latency_s


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [
        (Busy(0.0), Busy(1.0)),
        (Busy(1.0), Busy(0.0)),
        (Busy(1.0, 2.0), Busy(1.0, None)),
        (Busy(1.0, None), Busy(1.0, 2.0)),
        (Busy(1.0, 2.0), Busy(1.0, 2.0)),
    ],
)
def test_what_is_not_known_changes_nothing(predicted: Busy, measured: Busy) -> None:
    profile = example()
    assert recalibrate(profile, [predicted] * 2, [measured] * 2) == profile


def test_a_device_without_times_stays_so() -> None:
    profile = example()
    unmeasured = ClusterProfile(tuple(replace(device, times=None) for device in profile.devices))
    assert recalibrate(unmeasured, [Busy(1.0)] * 2, [Busy(2.0)] * 2) == unmeasured


def test_one_run_of_another_number_of_devices_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        recalibrate(example(), [Busy(1.0)] * 3, [Busy(1.0)] * 3)
