"""How long the exchanges of training take over a cluster's links, taken one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from edgempi.cluster.profile import ClusterProfile, Link

Group = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """The links between ranks, by pair."""

    links: Mapping[tuple[int, int], Link]
    _slowest: dict[tuple[Group, Group], Link] = field(init=False, repr=False, compare=False, default_factory=dict)

    @classmethod
    def of(cls, cluster: ClusterProfile) -> Network:
        """The links of a cluster."""
        return cls({(link.source, link.target): link for link in cluster.links})

    def link(self, source: int, target: int) -> Link:
        """From one rank to another."""
        return self.links[source, target]

    def slowest(self, sources: Group, targets: Group) -> Link:
        """The least bandwidth and the longest latency from any of some ranks to any other of some."""
        key = (sources, targets)
        if key not in self._slowest:
            between = [self.links[a, b] for a in sources for b in targets if a != b]
            self._slowest[key] = Link(
                sources[0], targets[-1], max(link.latency_s for link in between),
                min((link.bits_per_s for link in between), default=inf),
            )  # fmt: skip
        return self._slowest[key]

    def all_reduce_line(self, devices: Group) -> tuple[float, float]:
        """Of a ring over devices: seconds whatever the bytes, and for each."""
        size = len(devices)
        if size < 2:
            return 0.0, 0.0
        link = self.slowest(devices, devices)
        return 2 * (size - 1) * link.latency_s, 2 * (size - 1) / size * 8 / link.bits_per_s

    def all_reduce_s(self, devices: Group, nbytes: float) -> float:
        """Of a ring: every device sends 2 (n - 1) / n of the bytes, in as many parts."""
        begin_s, s_per_byte = self.all_reduce_line(devices)
        return begin_s + s_per_byte * nbytes if nbytes > 0 else 0.0

    def handover_line(self, sources: Group, targets: Group) -> tuple[float, float]:
        """From one stage's devices to the next one's: seconds whatever the bytes, and for each.

        Rows are taken to be shared evenly on the side with fewer devices.
        """
        link = self.slowest(sources, targets)
        return link.latency_s, 8 / link.bits_per_s / min(len(sources), len(targets))

    def handover_s(self, sources: Group, targets: Group, nbytes: float) -> float:
        """From one stage's devices to the next one's."""
        begin_s, s_per_byte = self.handover_line(sources, targets)
        return begin_s + s_per_byte * nbytes if nbytes > 0 else 0.0

    def exchange_s(self, sent: Mapping[tuple[int, int], float]) -> float:
        """Of bytes by (source, target) all at once: the busiest uplink or downlink."""
        ends: dict[tuple[int, int], float] = {}
        for (source, target), nbytes in sent.items():
            seconds = self.links[source, target].seconds(nbytes)
            for end in ((0, source), (1, target)):
                ends[end] = ends.get(end, 0.0) + seconds
        return max(ends.values(), default=0.0)
