"""What is known of a configured cluster: what the user described, and what was measured of it."""

from __future__ import annotations

from dataclasses import replace

from edgempi.cluster.profile import ClusterProfile, Device
from edgempi.cluster.profile_text import load_profile
from edgempi.config.schema import ClusterConfig
from edgempi.errors import UserError


def known_profile(config: ClusterConfig) -> ClusterProfile:
    """The devices that the user described, with what was measured where `cluster.profile` names a file.

    Hosts, speeds and budgets are the configuration's: they may change after the measuring.

    Raises:
        UserError: the file cannot be read, is no profile, or was measured on other devices.
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
    pairs = zip(described, measured.devices, strict=True)
    devices = tuple(replace(device, times=found.times, memory=found.memory) for device, found in pairs)
    return replace(measured, devices=devices)
