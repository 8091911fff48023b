"""What a configuration asks of the planner, in the planner's own words."""

from __future__ import annotations

from edgempi.config.finetune import (
    CacheConfig,
    CacheDtype,
    FinetuneDataConfig,
    MergeName,
    ObjectiveName,
    OptimizerConfig,
    OptimizerName,
    SystemConfig,
    TechniqueConfig,
)
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.measured import Kept
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.systems import Request, System
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload

ELEMENT_BYTES = {CacheDtype.fp32: 4, CacheDtype.bf16: 2, CacheDtype.int8: 1}
SCALE_BYTES = 4
"""Of the scale that int8 has for every token of a layer."""


def tuning_of(technique: TechniqueConfig) -> Tuning:
    """The technique with its sizes."""
    return Tuning(
        Technique(technique.name.value),
        rank=technique.rank,
        bottleneck_reduction=technique.bottleneck_reduction,
        reduction=technique.reduction,
        down_rank=technique.down_rank,
        merge=technique.merge is MergeName.add,
        alpha=technique.alpha,
    )


def request_of(system: SystemConfig, technique: TechniqueConfig, cache: CacheConfig) -> Request:
    """The system, and how it is used."""
    return Request(
        System(system.name.value),
        Technique(technique.name.value),
        cache=cache.enabled,
        alone=system.device,
        after=None if system.after is None else Continuation(system.after.value),
        published=system.objective is ObjectiveName.published,
    )


def kept_of(weight_dtype: str, optimizer: OptimizerConfig, cache: CacheConfig, spec: ModelSpec) -> Kept:
    """In what form things are kept while a model is trained; see `cache_bytes`."""
    method = "adamw" if optimizer.name is OptimizerName.adamw else "momentum" if optimizer.momentum else "sgd"
    return Kept(weight_dtype, method, cache_bytes(cache, spec))


def work_of(rows: FinetuneDataConfig, spec: ModelSpec) -> Workload:
    """The longest row that there may be: what training is measured for, and planned for with measured times."""
    if spec.enc and spec.dec:
        return Workload(1, rows.max_target_tokens, rows.max_tokens)
    return Workload(1, rows.max_tokens)


def cache_bytes(cache: CacheConfig, spec: ModelSpec) -> float:
    """Bytes of one activation in the cache, by the last stack's width; those that the head reads are not projected."""
    columns = spec.stacks[spec.last].width / cache.factor
    scale = SCALE_BYTES / columns if cache.dtype is CacheDtype.int8 else 0.0
    return (ELEMENT_BYTES[cache.dtype] + scale) / cache.factor
