"""Training as tests need it: layers of given bytes, devices of given times, links all alike."""

from __future__ import annotations

from collections.abc import Sequence

from edgempi.cluster.profile import ClusterProfile, Device, Link
from edgempi.plan.balance import Cost
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.training.costs import Costs, LayerTimes
from edgempi.plan.training.sizes import LayerBytes


def costs(
    forward: Sequence[Sequence[tuple[float, float]]],
    backward: Sequence[Sequence[tuple[float, float]]],
    layers: Sequence[LayerBytes] = (),
    optimizer_copies: int = 0,
) -> Costs:
    """By device and layer, (seconds whatever the rows, seconds for each); units are `dec.0`, `dec.1` ..."""
    count = len(forward[0])
    times = tuple(
        LayerTimes(tuple(Cost(*c) for c in there), tuple(Cost(*c) for c in back))
        for there, back in zip(forward, backward, strict=True)
    )
    pieces = tuple((f"dec.{layer}",) for layer in range(count))
    return Costs(pieces, tuple(layers) or (LayerBytes(),) * count, times, optimizer_copies)


def even_costs(
    devices: int,
    layers: int,
    forward_s: float = 1.0,
    backward_s: float = 1.0,
    size: LayerBytes | None = None,
    copies: int = 0,
) -> Costs:
    """Equal devices and layers; seconds are of a row, and there is no fixed part."""
    line = [(0.0, forward_s)] * layers
    back = [(0.0, backward_s)] * layers
    return costs([line] * devices, [back] * devices, [size or LayerBytes()] * layers, copies)


def cluster(
    size: int, bits_per_s: float = 8e6, budgets: Sequence[int | None] | None = None, latency_s: float = 0.0
) -> ClusterProfile:
    """Devices `d0`, `d1` ..., fully linked."""
    lent = budgets or [None] * size
    devices = tuple(Device(f"d{d}", "h", 1.0, lent[d]) for d in range(size))
    pairs = ((a, b) for a in range(size) for b in range(size) if a != b)
    return ClusterProfile(devices, tuple(Link(a, b, latency_s, bits_per_s) for a, b in pairs))


def plan(
    costs: Costs, stages: Sequence[tuple[tuple[int, int], Sequence[int], Sequence[int]]], microbatches: int
) -> Plan:
    """Stages of (layers, devices, rows of a microbatch for each)."""
    made = (
        Stage(
            costs.units(layers),
            tuple(devices),
            PRESETS["data" if len(devices) > 1 else "single"],
            rows=tuple(map(float, rows)) if len(devices) > 1 else (),
        )
        for layers, devices, rows in stages
    )
    return Plan(tuple(made), microbatches=microbatches)
