"""What an emulated LAN consists of, as plain data: from the cluster's configuration, without touching the machine."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgempi.cluster.mpirun import LOCAL_HOSTS
from edgempi.config.cluster import ClusterConfig
from edgempi.errors import UserError

HEAD = "head"
"""The place where launchers start: on the bridge too, without limits."""
SUBNET = "10.77.0"
INTERFACE = "eth0"
LARGEST = 32
"""Devices in one lab; the head's address and the subnet's width leave room for more."""


@dataclass(frozen=True)
class LabDevice:
    """One device: its host name and address, the GEMM rate it shall show, and what memory it lends.

    Args:
        host: its name, unique in the lab.
        address: on the bridge.
        flops: fp32 GEMM rate per second of its one core.
        memory_bytes: for weights and activations, above what a rank's imports take; None: no limit.
    """

    host: str
    address: str
    flops: float
    memory_bytes: int | None


@dataclass(frozen=True)
class Lan:
    """The devices in rank order, and the rate of every link in each direction (None: not shaped)."""

    devices: tuple[LabDevice, ...]
    link_bits_per_s: float | None

    @property
    def hosts(self) -> list[str]:
        """The devices' names."""
        return [device.host for device in self.devices]

    @property
    def hosts_file(self) -> str:
        """The text of /etc/hosts in every place of the lab."""
        named = [("127.0.0.1", "localhost"), (head_address(), HEAD)]
        named += [(device.address, device.host) for device in self.devices]
        return "".join(f"{address} {name}\n" for address, name in named)

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self) | {"devices": [dataclasses.asdict(device) for device in self.devices]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Lan:
        """What `as_dict` wrote."""
        return cls(tuple(LabDevice(**device) for device in values["devices"]), values["link_bits_per_s"])


def head_address() -> str:
    """Where launchers listen."""
    return f"{SUBNET}.254"


def describe(cluster: ClusterConfig) -> Lan:
    """The LAN of a configuration with `cluster.lab`; raises `UserError` where its devices make no lab."""
    if cluster.lab is None:
        raise UserError(
            "cluster", value="real hosts", rule="the lab emulates the devices of a cluster with cluster.lab",
            remedy="Add cluster=lab_a, or another of lab_a .. lab_f",
        )  # fmt: skip
    lab, devices = cluster.lab, cluster.named_devices()
    hosts = Counter(device.host for device in devices.values())
    for host, count in hosts.items():
        if count > 1 or host in LOCAL_HOSTS or host == HEAD:
            raise UserError(
                "cluster.devices", value=f"host {host}", rule="each device of a lab has a host name of its own",
                remedy="Name the hosts of cluster.devices, as conf/cluster/lab_a.yaml does",
            )  # fmt: skip
    if len(devices) > LARGEST:
        raise UserError(
            "cluster.devices", value=f"{len(devices)} devices", rule=f"a lab has at most {LARGEST}",
            remedy="Leave some out",
        )  # fmt: skip
    link = lab.bandwidth_bits_per_s
    return Lan(
        devices=tuple(
            LabDevice(
                host=device.host,
                address=f"{SUBNET}.{number}",
                flops=device.speed * lab.flops_per_speed * lab.time_scale,
                memory_bytes=device.memory_budget_bytes,
            )
            for number, device in enumerate(devices.values(), 1)
        ),
        link_bits_per_s=None if link is None else link * lab.time_scale,
    )
