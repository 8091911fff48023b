"""Clusters as if measured: devices of given speeds, every link alike."""

from __future__ import annotations

from collections.abc import Sequence

from edgempi.cluster.profile import ClusterProfile, Device, DeviceTimes, ElementTime, LinearTime, Link


def times(speed: float, call_s: float = 1e-6) -> DeviceTimes:
    """A device on which a call, a FLOP and an element take their time."""
    return DeviceTimes(
        linear=LinearTime(call_s / speed, 5e-7 / speed, 2e-7 / speed),
        attention=ElementTime(call_s / speed, 1e-6 / speed),
        connective=ElementTime(call_s / speed, 1e-7 / speed),
        wire={name: ElementTime(0.0, 1e-8 / speed) for name in ("fp32", "bf16", "int8")},
    )


def cluster(
    speeds: Sequence[float],
    bits_per_s: float = 2e7,
    budgets: Sequence[int | None] | None = None,
    latency_s: float = 1e-5,
    call_s: float = 1e-6,
) -> ClusterProfile:
    """Devices `d0`, `d1` ... of these speeds, fully linked."""
    everyone = range(len(speeds))
    lent = budgets or [None] * len(speeds)
    devices = (Device(f"d{d}", "h", speeds[d], lent[d], times(speeds[d], call_s)) for d in everyone)
    links = (Link(a, b, latency_s, bits_per_s) for a in everyone for b in everyone if a != b)
    return ClusterProfile(tuple(devices), tuple(links), "fp32")
