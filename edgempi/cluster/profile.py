"""Devices as the planners see them: numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from edgempi.config.schema import ClusterConfig


@dataclass(frozen=True)
class Device:
    """One device: its name and host, its speed beside the others, and the memory it lends above the import baseline."""

    name: str
    host: str
    speed: float = 1.0
    memory_budget_bytes: int | None = None


@dataclass(frozen=True)
class ClusterProfile:
    """The devices in rank order."""

    devices: tuple[Device, ...]

    @property
    def size(self) -> int:
        """How many devices, which is how many ranks."""
        return len(self.devices)

    @classmethod
    def from_config(cls, config: ClusterConfig) -> ClusterProfile:
        """The profile that the user described."""
        named = config.named_devices()
        return cls(tuple(Device(n, d.host, d.speed, d.memory_budget_bytes) for n, d in named.items()))
