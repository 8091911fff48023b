"""The configuration of fine-tuning: its names are those of the plan, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgempi.config import finetune as config
from edgempi.errors import UserError
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.systems import System
from edgempi.plan.training.technique import Technique, Tuning


def test_names_are_those_of_the_plan() -> None:
    for names, plans in (
        (config.TechniqueName, Technique), (config.SystemName, System), (config.AfterName, Continuation),
    ):  # fmt: skip
        assert [name.value for name in names] == [name.value for name in plans]


def test_defaults_are_those_of_the_plan() -> None:
    found, tuning = config.TechniqueConfig(), Tuning(Technique.parallel_adapter)
    for name in ("rank", "bottleneck_reduction", "reduction", "down_rank"):
        assert getattr(found, name) == getattr(tuning, name)
    assert (found.merge is config.MergeName.add) == tuning.merge


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: config.TechniqueConfig(rank=0), "technique.rank: 0; at least 1"),
        (lambda: config.TechniqueConfig(down_rank=-1), "technique.down_rank: -1; at least 0"),
        (lambda: config.TechniqueConfig(alpha=float("nan")), "technique.alpha: nan; above zero"),
        (lambda: config.SystemConfig(device=-1), "system.device: -1"),
        (lambda: config.OptimizerConfig(name=config.OptimizerName.sgd), "sgd has no learning rate of its own"),
        (lambda: config.OptimizerConfig(warm_up=1.5), "optimizer.warm_up: 1.5; a share below 1, or a whole number"),
        (lambda: config.OptimizerConfig(beta2=1.0), "optimizer.beta2: 1.0"),
        (lambda: config.OptimizerConfig(clip=0.0), "optimizer.clip: 0.0; above zero"),
        (lambda: config.OptimizerConfig(epochs=0), "optimizer.epochs: 0"),
        (lambda: config.CacheConfig(factor=0), "cache.factor: 0"),
        (lambda: config.FinetuneDataConfig(source=config.SourceName.glue), "source=glue reads a file or folder"),
        (lambda: config.OptimizerConfig(warm_up=float("inf")), "optimizer.warm_up: inf; a share below 1"),
        (lambda: config.OptimizerConfig(warm_up=float("nan")), "optimizer.warm_up: nan; a share below 1"),
        (lambda: config.FinetuneDataConfig(score_range=[5.0, 0.0]), "finetune_data.score_range"),
        (lambda: config.FinetuneDataConfig(score_range=[0.0, float("inf")]), "lowest and highest score"),
        (lambda: config.FinetuneDataConfig(score_range=[0.0, 5.0], labels=["0", "1"]), "Leave out score_range, or"),
        (lambda: config.EvaluationConfig(patience=0), "evaluation.patience: 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_what_may_be() -> None:
    assert config.OptimizerConfig(name=config.OptimizerName.sgd, rate=0.1, warm_up=100, clip=None).warm_up == 100
    assert config.EvaluationConfig(every_steps=None, save_every_steps=0).every_steps is None
