"""The configuration of the devices as dataclasses: real ones, and those of an emulated LAN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from edgempi.config.rules import require


@dataclass
class DeviceConfig:
    """One device: where it is, how fast it is beside the others, and what memory it lends."""

    host: str = "localhost"
    speed: float = 1.0
    memory_budget_bytes: int | None = None
    threads: int | None = None
    """Cores that its rank may use; null: `cluster.threads_per_rank`."""

    def __post_init__(self) -> None:
        fine = 0 <= self.speed < inf
        require(fine, "device speed", self.speed, "a speed is a finite number from zero", "Give a relative speed")
        require(
            self.threads is None or self.threads >= 1, "device threads", self.threads, "at least 1", "Leave it null"
        )
        require(
            self.memory_budget_bytes is None or self.memory_budget_bytes > 0,
            "device memory_budget_bytes", self.memory_budget_bytes, "a budget is above zero",
            "Leave it null for a device without a limit",
        )  # fmt: skip


@dataclass
class LabConfig:
    """An emulated LAN: how its devices and links compare to those that they stand for."""

    bandwidth_bits_per_s: float | None = 125e6
    """Of each device's link, in each direction, before `time_scale`; null: links are not shaped."""
    time_scale: float = 2.0
    """How much faster than the devices they stand for all devices and links are."""
    flops_per_speed: float = 20.15e6
    """The fp32 GEMM rate, in FLOP/s, of a device of speed 1, before `time_scale`."""
    memory_limit: bool = True
    """Whether a device's memory budget is enforced; false lifts it, for planners too."""
    memory_scale: float = 1.0
    """By how much all memory budgets are multiplied: 2 where fp32 weights stand for bf16 ones."""

    def __post_init__(self) -> None:
        for name in ("bandwidth_bits_per_s", "time_scale", "flops_per_speed", "memory_scale"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < inf, f"cluster.lab.{name}", value, "above zero", "Give a positive number"
            )


@dataclass
class ClusterConfig:
    """The devices, and how MPI reaches them."""

    ranks: int = 2
    """How many ranks to start on this machine, where `devices` is empty."""
    devices: dict[str, DeviceConfig] = field(default_factory=dict)
    """Devices by name, in rank order; empty means `ranks` equal local ones."""
    memory_budget_bytes: int | None = None
    """The budget of each of the local ranks, where `devices` is empty."""
    profile: str | None = None
    """What `edgempi profile` measured of these devices and links (a YAML file), for the planners that need times."""
    lab: LabConfig | None = None
    """How these devices are emulated (`edgempi lab`); null: they are real hosts."""
    network: str | None = None
    """The interface or subnet (`eth0`, `192.168.1.0/24`) that carries traffic between hosts; null: MPI chooses."""
    threads_per_rank: int = 1
    timeout_s: float = 300.0
    """How long a rank waits for another one before it gives up and names it."""

    def __post_init__(self) -> None:
        require(self.ranks >= 1, "cluster.ranks", self.ranks, "at least one rank", "Set cluster.ranks=1 or more")
        require(self.timeout_s > 0, "cluster.timeout_s", self.timeout_s, "above zero", "Set it to e.g. 120")
        require(
            self.threads_per_rank >= 1, "cluster.threads_per_rank", self.threads_per_rank, "at least 1",
            "Set it to the cores that one rank may use",
        )  # fmt: skip

    def named_devices(self) -> dict[str, DeviceConfig]:
        """The devices in rank order, local ones named where none were given."""
        if self.devices:
            return {name: self._as_lent(device) for name, device in self.devices.items()}
        budget = self.memory_budget_bytes
        return {f"device{r}": DeviceConfig(memory_budget_bytes=budget) for r in range(self.ranks)}

    def _as_lent(self, device: DeviceConfig) -> DeviceConfig:
        budget = device.memory_budget_bytes
        if self.lab is None or budget is None:
            return device
        lent = int(budget * self.lab.memory_scale) if self.lab.memory_limit else None
        return replace(device, memory_budget_bytes=lent)
