"""Where the parts of one tensor lie, and which messages turn one lying into another.

A tensor of the residual stream is (rows B, tokens S, columns D). A device holds one box of it, its `Region`; a `Layout`
says which device holds which box. Replication is several devices with the same box. `moves` is the one place that
decides who sends what to whom: between pipeline stages of any modes, and when outputs are collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgempi.plan.apportion import Span


@dataclass(frozen=True)
class Region:
    """A box of a tensor: half-open ranges over rows, tokens and columns."""

    rows: Span
    tokens: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, tokens, columns) of the box."""
        return (self.rows[1] - self.rows[0], self.tokens[1] - self.tokens[0], self.columns[1] - self.columns[0])

    @property
    def empty(self) -> bool:
        """Whether the box holds nothing."""
        return 0 in self.shape

    def within(self, outer: Region) -> tuple[slice, slice, slice]:
        """The slices that cut this box out of a tensor which holds `outer`."""
        pairs = zip((self.rows, self.tokens, self.columns), (outer.rows, outer.tokens, outer.columns), strict=True)
        rows, tokens, columns = (slice(a - o, b - o) for (a, b), (o, _) in pairs)
        return rows, tokens, columns

    def meet(self, other: Region) -> Region:
        """The part that both boxes hold; empty where they do not touch."""
        return Region(
            _meet(self.rows, other.rows), _meet(self.tokens, other.tokens), _meet(self.columns, other.columns)
        )


Layout = Mapping[int, Region]
"""Which box each device (world rank) holds."""


@dataclass(frozen=True)
class Move:
    """One message: `region` goes from one device to another (or stays, where they are the same)."""

    source: int
    target: int
    region: Region


def moves(source: Layout, target: Layout) -> tuple[Move, ...]:
    """The messages that bring a tensor from one layout to another, each element once to each device that needs it.

    Args:
        source: who holds what; boxes are equal (replicas) or disjoint.
        target: who shall hold what; its boxes are covered by the source's.

    Returns:
        The moves in an order that every rank computes alike. A replicated box is served by the receiver itself where
        it holds one, otherwise by the replicas in turn, so that no single uplink carries all copies.
    """
    replicas: dict[Region, list[int]] = {}
    for device, region in source.items():
        if not region.empty:
            replicas.setdefault(region, []).append(device)
    found = []
    for turn, (device, wanted) in enumerate(target.items()):
        for region, holders in replicas.items():
            part = region.meet(wanted)
            if not part.empty:
                sender = device if device in holders else holders[turn % len(holders)]
                found.append(Move(sender, device, part))
    return tuple(found)


def _meet(a: Span, b: Span) -> Span:
    start, stop = max(a[0], b[0]), min(a[1], b[1])
    return (start, max(start, stop))
