"""Correct a profile by what a run took: a device that is busy with other things today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgempi.cluster.profile import ClusterProfile, Device, ElementTime, LinearTime


def recalibrate(profile: ClusterProfile, predicted_s: Sequence[float], measured_s: Sequence[float]) -> ClusterProfile:
    """The profile with each device's times as the run had them.

    A device's times keep their proportions: a run gives one number for each device, and it scales them all. Links are
    left alone: how long one was busy is not seen from outside it.

    Args:
        profile: measured.
        predicted_s: seconds that each device computes by this profile, in rank order, waits excluded.
        measured_s: the same in the run; zero on either side says nothing, and changes nothing.
    """
    pairs = zip(predicted_s, measured_s, strict=True)
    factors = [measured / predicted if predicted and measured else 1.0 for predicted, measured in pairs]
    devices = zip(profile.devices, factors, strict=True)
    return replace(profile, devices=tuple(_slower(device, factor) for device, factor in devices))


def _slower(device: Device, factor: float) -> Device:
    times = device.times
    if times is None:
        return device
    linear = times.linear
    scaled = replace(
        times,
        linear=LinearTime(linear.call_s * factor, linear.s_per_flop * factor, linear.s_per_weight * factor),
        attention=_scaled(times.attention, factor),
        connective=_scaled(times.connective, factor),
        wire={name: _scaled(taken, factor) for name, taken in times.wire.items()},
        transport=_scaled(times.transport, factor),
    )
    return replace(device, times=scaled)


def _scaled(taken: ElementTime, factor: float) -> ElementTime:
    return ElementTime(taken.call_s * factor, taken.s_per_element * factor)
