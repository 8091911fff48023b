"""What training is taken to take where nobody has measured it: the arithmetic, by the speeds that the user described.

Good for sharing work among devices in proportion, and for nothing finer: kernels have no fixed part, all links are
alike. Whoever shows such a plan says that its times are assumed.
"""

from __future__ import annotations

from dataclasses import replace

from edgempi.cluster.profile import ClusterProfile, ElementTime, Link
from edgempi.cluster.training_times import PHASES, LayerTime, RowTime, TrainingTimes
from edgempi.errors import UserError
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.flops import OPTIMIZER_FLOPS, Flops, unit_flops
from edgempi.plan.training.measured import layer_kinds
from edgempi.plan.training.sizes import pieces
from edgempi.plan.training.technique import Tuning
from edgempi.plan.workload import Workload

FLOPS_PER_S = 10e9
"""Of a device of speed 1."""
LINK_LATENCY_S, LINK_BITS_PER_S = 1e-4, 1e9


def assumed_times(
    spec: ModelSpec, tuning: Tuning, work: Workload, cluster: ClusterProfile, optimizer: str
) -> tuple[TrainingTimes, ...]:
    """Times of each device, in rank order.

    Args:
        spec: the model.
        tuning: the technique.
        work: tokens of a row.
        cluster: the devices with their speeds.
        optimizer: a name of `flops.OPTIMIZER_FLOPS`.

    Raises:
        UserError: a device has speed zero.
    """
    for device in cluster.devices:
        if device.speed == 0:
            raise UserError(
                f"speed of {device.name}", value=0, rule="every device that trains has one above zero",
                remedy="Leave the device out, or give it a relative speed",
            )  # fmt: skip
    phases = PHASES[:1] if tuning.crosses_backbone else PHASES
    counted = {phase: _by_kind(spec, tuning, work, phase == "cached") for phase in phases}
    return tuple(_times(counted, FLOPS_PER_S * device.speed, optimizer) for device in cluster.devices)


def with_links(cluster: ClusterProfile) -> ClusterProfile:
    """The cluster with all its links: the measured ones, or where there are none, equal ones."""
    pairs = [(a, b) for a in range(cluster.size) for b in range(cluster.size) if a != b]
    if len(cluster.links) == len(pairs):
        return cluster
    return replace(cluster, links=tuple(Link(a, b, LINK_LATENCY_S, LINK_BITS_PER_S) for a, b in pairs))


def _by_kind(spec: ModelSpec, tuning: Tuning, work: Workload, cached: bool) -> dict[str, Flops]:
    """Operations of a row by the kind of layer; of layers of one kind, the first stands for all."""
    units, found = unit_flops(spec, tuning, work, cached), dict[str, Flops]()
    for kind, run in zip(layer_kinds(spec), pieces(spec), strict=True):
        found.setdefault(kind, sum((units[unit] for unit in run), Flops()))
    return found


def _times(counted: dict[str, dict[str, Flops]], per_s: float, optimizer: str) -> TrainingTimes:
    layers: dict[str, dict[str, LayerTime]] = {
        phase: {
            kind: LayerTime(RowTime(0.0, flops.forward / per_s), RowTime(0.0, flops.backward / per_s))
            for kind, flops in kinds.items()
        }
        for phase, kinds in counted.items()
    }
    return TrainingTimes(layers, ElementTime(0.0, OPTIMIZER_FLOPS[optimizer] / per_s))


def spoken(cluster: ClusterProfile) -> str:
    """The assumption in a sentence, of a cluster before `with_links`."""
    speeds = ", ".join(f"{device.speed:g}" for device in cluster.devices)
    links = f"links of {LINK_BITS_PER_S / 1e9:g} Gbit/s" if with_links(cluster) != cluster else "links as measured"
    return (
        f"Times are assumed, not measured: {FLOPS_PER_S / 1e9:g} GFLOP/s times the devices' speeds ({speeds})"
        f"{', ' + links if cluster.size > 1 else ''}."
    )
