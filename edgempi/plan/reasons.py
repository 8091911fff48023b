"""Why this plan: what each block is predicted to take on each device, what was rejected, and how right it all was.

Rows of JSON types, as tables and JSON show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgempi.plan.latency import BLOCKS, Latency
from edgempi.plan.memory import RUNTIME_BYTES, predict_memory, weight_bytes_by_block
from edgempi.plan.plan import Plan
from edgempi.plan.search import Tried
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload

MOST = 8
"""How many rejected plans are worth telling."""


def block_rows(
    plan: Plan, spec: ModelSpec, work: Workload, names: Sequence[str], latency: Latency | None
) -> list[dict[str, Any]]:
    """What each block takes on each device, over all layers.

    Returns:
        Rows with `device`, `block`, `compute_s`, `wire_s`, `exposed_s` (None where no times were measured) and
        `memory_bytes`: a block's weights; then, as blocks of their own, what else the peak is made of.
    """
    rows = []
    for device, name in enumerate(names):
        weights = weight_bytes_by_block(plan, spec, device)
        memory = predict_memory(plan, spec, device, work)
        timed = {} if latency is None else {block.block: block for block in latency.devices[device].blocks}
        for block in BLOCKS:
            if block in timed or block in weights:
                row: dict[str, Any] = {"device": name, "block": block, "memory_bytes": weights.get(block, 0)}
                for key in ("compute_s", "wire_s", "exposed_s"):
                    none = None if latency is None else 0.0
                    row[key] = getattr(timed[block], key) if block in timed else none
                rows.append(row)
        beside = memory.peak - memory.weights - RUNTIME_BYTES
        for what, nbytes in (("cache and activations", beside), ("runtime", RUNTIME_BYTES)):
            none_of = dict.fromkeys(("compute_s", "wire_s", "exposed_s"))
            rows.append({"device": name, "block": what, "memory_bytes": nbytes, **none_of})
    return rows


def rejected_rows(ranking: Sequence[Tried]) -> list[dict[str, Any]]:
    """The best plan of each way that lost: `name`, `seconds` (None where it does not fit) and `why`."""
    rows = []
    for tried in ranking[1 : MOST + 1]:
        if tried.fits:
            slower = tried.score.seconds / ranking[0].score.seconds - 1
            rows.append({"name": tried.name, "seconds": tried.score.seconds, "why": f"slower by {slower:.0%}"})
        else:
            lacks = f"does not fit: {tried.device} lacks {tried.lacks_bytes / 1e6:.0f} MB"
            rows.append({"name": tried.name, "seconds": None, "why": lacks})
    return rows
