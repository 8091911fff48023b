"""Jobs of `edgempi finetune` on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgempi.config.cluster import ClusterConfig, DeviceConfig
from edgempi.config.finetune import (
    AfterName,
    CacheConfig,
    CacheDtype,
    EvaluationConfig,
    FinetuneDataConfig,
    OptimizerConfig,
    OptimizerName,
    ScheduleName,
    SystemConfig,
    SystemName,
    TechniqueConfig,
    TechniqueName,
)
from edgempi.config.schema import Config, ModelConfig, TaskConfig

ROWS = 12
SPEEDS = (3.0, 1.0)


def job(
    model: Path, folder: Path, system: str, ranks: int, *, batch: int = 5, epochs: int = 3, cached: bool = False,
    after: str | None = None, technique: str = "parallel_adapter", resume: bool = False, evaluates: bool = True,
    budget_bytes: int | None = None, **more: Any,
) -> Config:  # fmt: skip
    """SGD in fp32, every loss logged; on several ranks, of unequal speeds."""
    speeds = SPEEDS[:ranks] if ranks > 1 else (1.0,)
    devices = {
        f"device{rank}": DeviceConfig(speed=speed, memory_budget_bytes=budget_bytes)
        for rank, speed in enumerate(speeds)
    }
    return Config(
        task=TaskConfig(name="finetune", folder=str(folder), resume=resume),
        model=ModelConfig(path=str(model)),
        cluster=ClusterConfig(devices=devices, timeout_s=60.0),
        technique=TechniqueConfig(name=TechniqueName(technique), rank=4, reduction=2, bottleneck_reduction=4),
        system=SystemConfig(
            name=SystemName(system), after=None if after is None else AfterName(after), bucket_bytes=4000
        ),
        optimizer=OptimizerConfig(
            name=OptimizerName.sgd, rate=0.02, schedule=ScheduleName.constant, warm_up=0.0, epochs=epochs, **more
        ),
        cache=CacheConfig(enabled=cached, dtype=CacheDtype.fp32, folder=str(folder.parent / "cache")),
        finetune_data=FinetuneDataConfig(generated_rows=ROWS, batch=batch, max_tokens=64),
        evaluation=EvaluationConfig(
            log_every_steps=1, every_steps=0 if evaluates else None, batch=4, save_every_steps=0
        ),
    )  # fmt: skip
