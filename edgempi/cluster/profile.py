"""Devices and links as the planners see them: numbers only, described by the user or measured by `edgempi profile`.

Times are fits over what a device was seen to take, small enough to reason about:

    linear      y = x W^T, x (m, k), W (n, k):   call_s + 2 m n k * s_per_flop + n k * s_per_weight
    elementwise over e elements:                 call_s + e * s_per_element
    attention   q queries, t keys, H heads of D:  call_s + H q t D * s_per_element

`s_per_weight` is what it costs to read the weight once per call, whatever the rows; it is why tiles of few rows are
dearer than their share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LinearTime:
    """Seconds of a linear layer."""

    call_s: float
    s_per_flop: float
    s_per_weight: float

    def seconds(self, rows: float, outputs: float, inputs: float) -> float:
        """Of (rows, inputs) times (outputs, inputs) transposed; nothing for an empty one."""
        weights = outputs * inputs
        if rows <= 0 or weights <= 0:
            return 0.0
        return self.call_s + weights * (2 * rows * self.s_per_flop + self.s_per_weight)


@dataclass(frozen=True)
class ElementTime:
    """Seconds of an operation whose work is counted in elements."""

    call_s: float
    s_per_element: float

    def seconds(self, elements: float) -> float:
        """Of `elements`; nothing for none."""
        return self.call_s + elements * self.s_per_element if elements > 0 else 0.0


@dataclass(frozen=True)
class DeviceTimes:
    """What one device takes, at the weight dtype the profile was made for.

    Attributes:
        linear: every linear layer, its bias and activation included.
        attention: the core, softmax(QK^T)V, and what stands between it and the linears, by H q t D.
        connective: residual add and norm, by elements of the stream.
        wire: by wire dtype: encode one tile and decode and add another, by elements of the tile.
        transport: the processor's part in sending so many bytes and receiving as many others, by bytes; what the
            wire itself takes is the link's.
        causal_share: where all tokens of a causal pass meet at once, the part of the q t pairs that the kernel works
            out: a half at best, and more where it leaves out whole blocks only.
    """

    linear: LinearTime
    attention: ElementTime
    connective: ElementTime
    wire: Mapping[str, ElementTime] = field(default_factory=dict)
    transport: ElementTime = ElementTime(0.0, 0.0)
    causal_share: float = 0.5


@dataclass(frozen=True)
class Link:
    """One direction between two devices (ranks), measured while every device sends and receives.

    `bits_per_s` counts payload: protocol headers are what the line rate has above it.
    """

    source: int
    target: int
    latency_s: float
    bits_per_s: float

    def seconds(self, nbytes: float) -> float:
        """Of one message; nothing for an empty one, which is not sent."""
        return self.latency_s + 8 * nbytes / self.bits_per_s if nbytes > 0 else 0.0


@dataclass(frozen=True)
class DeviceMemory:
    """A rank's memory as it was measured.

    Attributes:
        import_bytes: resident once the libraries are imported; budgets count from there.
        runtime_bytes: what libraries and the allocator keep beside tensors after they have worked.
        free_bytes: what its host had available before.
    """

    import_bytes: int
    runtime_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Device:
    """One device: its name and host, its speed beside the others, and the memory it lends above the import baseline.

    Attributes:
        times: what it was measured to take; None where no profile was made.
        memory: measured with them.
    """

    name: str
    host: str
    speed: float = 1.0
    memory_budget_bytes: int | None = None
    times: DeviceTimes | None = None
    memory: DeviceMemory | None = None


@dataclass(frozen=True)
class ClusterProfile:
    """The devices in rank order, and the links between them.

    Attributes:
        devices: in rank order.
        links: every ordered pair, where measured.
        weight_dtype: the dtype of weights and activations that `times` are for; None where nothing was measured.
        settings: of the cluster, by name, without which times and links would be others.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    weight_dtype: str | None = None
    settings: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many devices, which is how many ranks."""
        return len(self.devices)

    @property
    def measured(self) -> bool:
        """Whether every device's times and every link are known."""
        pairs = self.size * (self.size - 1)
        return len(self.links) == pairs and all(device.times is not None for device in self.devices)

    def link(self, source: int, target: int) -> Link:
        """The measured link from one rank to another."""
        return next(link for link in self.links if (link.source, link.target) == (source, target))
