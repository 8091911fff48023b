"""From a configuration to the planner's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.config import finetune as config
from edgempi.plan.training.asked import cache_bytes, kept_of, request_of, tuning_of, work_of
from edgempi.plan.training.measured import Kept
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.systems import Request, System
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload
from unit.plan.training.models import t5

LARGE = t5(24, 1024, 16, 4096)


def test_defaults_are_pac() -> None:
    technique = config.TechniqueConfig()
    assert tuning_of(technique) == Tuning(Technique.parallel_adapter)
    assert request_of(config.SystemConfig(), technique, config.CacheConfig()) == Request(
        System.pac, Technique.parallel_adapter
    )
    assert kept_of("fp32", config.OptimizerConfig(), config.CacheConfig(), LARGE) == Kept(cache_bytes=2)


def test_what_is_set_is_asked() -> None:
    technique = config.TechniqueConfig(
        config.TechniqueName.lora, rank=4, alpha=8, merge=config.MergeName.none, down_rank=0
    )
    assert tuning_of(technique) == Tuning(Technique.lora, rank=4, alpha=8, merge=False, down_rank=0)
    system = config.SystemConfig(
        config.SystemName.standalone, device=2, after=config.AfterName.in_place,
        objective=config.ObjectiveName.published,
    )  # fmt: skip
    assert request_of(system, technique, config.CacheConfig(enabled=False)) == Request(
        System.standalone, Technique.lora, False, 2, Continuation.in_place, True
    )
    sgd = config.OptimizerConfig(config.OptimizerName.sgd, rate=0.1, momentum=0.9)
    assert kept_of("bf16", sgd, config.CacheConfig(), LARGE).optimizer == "momentum"


@pytest.mark.parametrize(
    ("dtype", "factor", "most"), [("fp32", 1, 1.0), ("bf16", 1, 0.5), ("int8", 1, 0.26), ("int8", 8, 0.035)]
)
def test_cached_bytes(dtype: str, factor: int, most: float) -> None:
    found = cache_bytes(config.CacheConfig(dtype=config.CacheDtype(dtype), factor=factor), LARGE) / 4
    assert most * 0.9 < found <= most


def test_the_longest_row() -> None:
    rows = config.FinetuneDataConfig(max_tokens=96, max_target_tokens=5)
    assert work_of(rows, LARGE) == Workload(1, 5, 96)
    assert work_of(rows, replace(LARGE, dec=None)) == Workload(1, 96)
