"""What is known of a configured cluster: what the user described, and what was measured of it."""

from __future__ import annotations

from dataclasses import replace

from edgempi.cluster.profile import ClusterProfile, Device
from edgempi.cluster.profile_text import load_profile
from edgempi.config.cluster import ClusterConfig
from edgempi.errors import UserError


def profiled_settings(config: ClusterConfig) -> dict[str, float | None]:
    """What of a cluster's settings its times and links depend on, by name."""
    found: dict[str, float | None] = {"threads_per_rank": config.threads_per_rank}
    if config.lab is not None:
        for name in ("bandwidth_bits_per_s", "time_scale", "flops_per_speed"):
            found[f"lab.{name}"] = getattr(config.lab, name)
    return found


def known_profile(config: ClusterConfig) -> ClusterProfile:
    """The devices that the user described, with what was measured where `cluster.profile` names a file.

    Hosts, speeds and budgets are the configuration's: they may change after the measuring.

    Raises:
        UserError: the file cannot be read, is no profile, or was measured on other devices or with other settings.
    """
    named = config.named_devices()
    described = tuple(Device(n, d.host, d.speed, d.memory_budget_bytes) for n, d in named.items())
    if config.profile is None:
        return ClusterProfile(described)
    measured = load_profile(config.profile)
    names = [device.name for device in measured.devices]
    if names != list(named):
        raise UserError(
            f"cluster.profile {config.profile}", value=f"measured on {', '.join(names) or 'no device'}",
            rule=f"the cluster is {', '.join(named)}, in this order",
            remedy="Measure this cluster with edgempi profile, or choose the cluster that it was made for",
        )  # fmt: skip
    wanted = profiled_settings(config)
    for name, value in measured.settings.items():
        if value != wanted.get(name, value):
            raise UserError(
                f"cluster.profile {config.profile}", value=f"measured with {name}={_plain(value)}",
                rule=f"this cluster has {name}={_plain(wanted[name])}",
                remedy="Measure this cluster with edgempi profile, or choose the settings that it was made for",
            )  # fmt: skip
    pairs = zip(described, measured.devices, strict=True)
    devices = tuple(replace(device, times=found.times, memory=found.memory) for device, found in pairs)
    return replace(measured, devices=devices)


def _plain(value: float | None) -> str:
    return "null" if value is None else f"{value:.12g}"
