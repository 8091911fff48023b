"""Why no pipeline fits: the device that lacks least memory where as little as can be is missing."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from edgempi.cluster.profile import ClusterProfile
from edgempi.errors import UserError
from edgempi.plan.training.actions import classic_depths
from edgempi.plan.training.partition import Limits
from edgempi.plan.training.runs import Floats, Runs


class ShortageError(UserError):
    """No pipeline fits the devices' memory.

    Attributes:
        device: that lacks least where as little as can be is missing.
        missing_bytes: what it lacks.
        budget_bytes: what it lends.
    """

    def __init__(
        self, what: str, *, value: object, rule: str, remedy: str, device: int, missing_bytes: int, budget_bytes: int
    ) -> None:
        self.device, self.missing_bytes, self.budget_bytes = device, missing_bytes, budget_bytes
        super().__init__(what, value=value, rule=rule, remedy=remedy)


def refuse(
    runs: Runs, cluster: ClusterProfile, orders: Sequence[Sequence[int]], limits: Limits, microbatches: int
) -> UserError:
    """The error that says what is missing.

    The pipeline that needs least has one device per stage and one row per microbatch; of all its cuts into stages, the
    one whose largest lack is smallest is told. With one stage for everyone each device needs all layers.

    Args:
        runs: the layers.
        cluster: what each device lends.
        orders: of the devices, as they were tried.
        limits: what a pipeline may look like.
        microbatches: of one row each.
    """
    if limits.stages == 1 and limits.everyone:
        lacks = [float(_lack(runs, cluster, device, 1)[0, -1]) for device in range(cluster.size)]
        missing, device = max((lack, device) for device, lack in enumerate(lacks))
    else:
        missing, device = min(_least(runs, cluster, order, limits, microbatches) for order in orders)
    if not 0 < missing < inf:
        return UserError(
            "pipeline", value=f"{limits.stages or 'any number of'} stages of at most {limits.group or cluster.size} "
            "devices", rule=f"{runs.costs.size} layers and {cluster.size} devices can be cut so",
            remedy="Ask for fewer stages or larger groups",
        )  # fmt: skip
    budget = cluster.devices[device].memory_budget_bytes or 0
    return ShortageError(
        f"device {cluster.devices[device].name}",
        value=f"needs {(budget + missing) / 1e6:.0f} MB to train its layers, one row at a time",
        rule=f"its memory budget is {budget / 1e6:.0f} MB (above what its imports take), {missing / 1e6:.0f} MB are "
        "missing, and no other cut into stages lacks less",
        remedy=f"Raise its budget by {missing / 1e6:.0f} MB, add devices, or choose technique=parallel_adapter, "
        "weights=bf16 or shorter sequences",
        device=device, missing_bytes=int(missing), budget_bytes=budget,
    )  # fmt: skip


def _least(
    runs: Runs, cluster: ClusterProfile, order: Sequence[int], limits: Limits, microbatches: int
) -> tuple[float, int]:
    """The smallest largest lack of any cut, and the device that has it."""
    size, count = runs.costs.size, len(order)
    best: dict[tuple[int, int], tuple[Floats, NDArray[np.int_]]] = {}
    found = (inf, order[0])
    for devices in range(1, count + 1):
        device = order[count - devices]
        for stages in range(1, min(devices, limits.stages or count, size) + 1):
            lack = _lack(runs, cluster, device, min(classic_depths(stages)[0], microbatches))
            value, whose = np.full(size + 1, inf), np.full(size + 1, device)
            if stages == 1:
                value = lack[:, -1]
            elif (devices - 1, stages - 1) in best:
                rest, later = best[devices - 1, stages - 1]
                total = np.maximum(lack, rest)
                value, border = total.min(axis=1), total.argmin(axis=1)
                whose = np.where(lack[np.arange(size + 1), border] >= rest[border], device, later[border])
            if (devices - 1, stages) in best and not limits.everyone:  # this device stays idle
                idle, others = best[devices - 1, stages]
                whose = np.where(idle < value, others, whose)
                value = np.minimum(idle, value)
            best[devices, stages] = (value, whose)
            if limits.stages in (None, stages) and (devices == count or not limits.everyone):
                found = min(found, (float(value[0]), int(whose[0])))
    return found


def _lack(runs: Runs, cluster: ClusterProfile, device: int, depth: int) -> Floats:
    """Bytes that are missing on a device for every run of layers, with one row in each microbatch."""
    budget = cluster.devices[device].memory_budget_bytes
    fixed, stored, passing = runs.memory
    return runs.table(fixed + depth * stored + passing - (inf if budget is None else budget), inf)
