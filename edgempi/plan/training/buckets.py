"""Which gradients are summed together, over whom: the parameters of several layers at a time, last layers first.

A parameter that layers of several stages share (a tied token table, a stack's relative positions) is summed over all
devices that hold it, after the rest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from edgempi.plan.apportion import length
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs, layer_spans
from edgempi.plan.training.sizes import LayerBytes


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed by one all-reduce.

    Attributes:
        name: unlike that of any other bucket.
        devices: who takes part, in the order of their stages.
        layers: whose gradients it holds, complete once the backward pass has left them; empty for shared parameters.
        tables: the shared parameters in it, by name.
        nbytes: of the gradients.
    """

    name: str
    devices: tuple[int, ...]
    layers: tuple[int, int]
    tables: tuple[str, ...]
    nbytes: int


def buckets(plan: Plan, costs: Costs, least_bytes: int) -> dict[int, tuple[Bucket, ...]]:
    """The buckets that each device takes part in, in the order in which it begins to sum them.

    Args:
        plan: who holds what.
        costs: what the layers' trained parameters take.
        least_bytes: a bucket is closed once it holds so many.
    """
    found: dict[int, list[Bucket]] = {device: [] for device in plan.devices}
    tables: dict[tuple[int, ...], dict[str, int]] = defaultdict(dict)
    for name, nbytes, devices in _shared(plan, costs):
        tables[devices][name] = nbytes
    for index, (stage, (start, stop)) in enumerate(zip(plan.stages, layer_spans(plan, costs), strict=True)):
        gathered, end = 0, stop
        for layer in range(stop - 1, start - 1, -1):
            gathered += costs.layers[layer].trained
            if stage.size > 1 and gathered and (gathered >= least_bytes or layer == start):
                bucket = Bucket(f"stage {index} layers {layer}:{end}", stage.devices, (layer, end), (), gathered)
                for device in stage.devices:
                    found[device].append(bucket)
                gathered, end = 0, layer
    for devices, named in tables.items():
        bucket = Bucket("shared " + " ".join(named), devices, (0, 0), tuple(named), sum(named.values()))
        for device in devices:
            found[device].append(bucket)
    return {device: tuple(listed) for device, listed in found.items()}


def _shared(plan: Plan, costs: Costs) -> list[tuple[str, int, tuple[int, ...]]]:
    """Trained parameters that several layers share, with their bytes and who holds them, where that is not one."""
    holders: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for stage, layers in zip(plan.stages, layer_spans(plan, costs), strict=True):
        held: dict[str, LayerBytes] = {}
        for layer in costs.layers[slice(*layers)] if length(layers) else ():
            held |= dict.fromkeys(layer.trains_tables, layer)
        for name, layer in held.items():
            holders[name] = holders.get(name, ()) + stage.devices
            sizes[name] = layer.tables[name]
    return [(name, sizes[name], holders[name]) for name in sorted(holders) if len(holders[name]) > 1]
