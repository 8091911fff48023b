"""Correct a profile by what a run took: a device that is busy with other things today, a link that has become slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgempi.cluster.profile import ClusterProfile, Device, ElementTime, LinearTime


@dataclass(frozen=True)
class Busy:
    """What one device did in a run, as predicted or as measured.

    Attributes:
        compute_s: seconds that it computed, waits excluded.
        wire_s: seconds that what it sent kept its link busy; None where nobody knows.
    """

    compute_s: float
    wire_s: float | None = None


def recalibrate(profile: ClusterProfile, predicted: Sequence[Busy], measured: Sequence[Busy]) -> ClusterProfile:
    """The profile with each device's times and each link's rate as the run had them.

    A device's times keep their proportions: a run gives one number for each device, and it scales them all. The same
    holds of the links that leave a device. What either side did not do, or does not know, says nothing and changes
    nothing.

    Args:
        profile: measured.
        predicted: of each device by this profile, in rank order.
        measured: of each device in the run.
    """
    compute = [_ratio(p.compute_s, m.compute_s) for p, m in zip(predicted, measured, strict=True)]
    wire = [_ratio(p.wire_s, m.wire_s) for p, m in zip(predicted, measured, strict=True)]
    devices = zip(profile.devices, compute, strict=True)
    return replace(
        profile,
        devices=tuple(_slower(device, factor) for device, factor in devices),
        links=tuple(replace(link, bits_per_s=link.bits_per_s / wire[link.source]) for link in profile.links),
    )


def _ratio(predicted: float | None, measured: float | None) -> float:
    return measured / predicted if predicted and measured else 1.0


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
