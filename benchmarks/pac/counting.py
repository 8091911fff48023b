"""Operations of a mini-batch by technique, counted from the model's spec."""

from __future__ import annotations

from typing import Any

from benchmarks.checkpoint import spec_of
from benchmarks.pac.published import BATCH, LENGTH
from benchmarks.pac.rows import TARGET_LENGTH
from benchmarks.shapes import SHAPES
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.flops import sample_flops, update_flops
from edgempi.plan.training.technique import Technique, Tuning, trained_elements
from edgempi.plan.workload import Workload

CACHED = "cached"
WORK = Workload(1, TARGET_LENGTH, LENGTH)


def count(model: str, layers: int) -> dict[str, Any]:
    """Count a mini-batch.

    Returns:
        By technique, and for Parallel Adapters from the cache, `forward`, `backward` and `update` operations and
        `trained` numbers; `backbone_linears`, what of one forward pass are products with weights.
    """
    spec = spec_of(SHAPES[model], layers)
    rows = {technique.value: (technique, False) for technique in Technique}
    found: dict[str, Any] = {}
    for name, (technique, cached) in {**rows, CACHED: (Technique.parallel_adapter, True)}.items():
        tuning = Tuning(technique)
        flops = sample_flops(spec, tuning, WORK, cached)
        found[name] = {
            "forward": BATCH * flops.forward,
            "backward": BATCH * flops.backward,
            "update": update_flops(spec, tuning),
            "trained": trained_elements(spec, tuning),
        }
    backbone = found[Technique.full.value]["forward"]
    return {"techniques": found, "backbone_linears": backbone - BATCH * _attention_cores(spec)}


def _attention_cores(spec: ModelSpec) -> int:
    """Of one sample: the two products of attention, which read no weights."""
    total = 0
    for name, stack in spec.stacks.items():
        tokens = WORK.of(spec, name)
        own = tokens * (tokens + 1) // 2 if stack.causal else tokens * tokens
        pairs = own + (tokens * WORK.memory_tokens if stack.cross else 0)
        total += stack.layers * 4 * pairs * stack.heads * stack.head_dim
    return total
