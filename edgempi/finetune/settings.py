"""What a configuration says about a run, in the words of the loop, the optimizer and the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgempi.config.finetune import (
    CacheConfig,
    EvaluationConfig,
    FinetuneDataConfig,
    OptimizerConfig,
    TechniqueConfig,
)
from edgempi.errors import UserError
from edgempi.finetune.cache.found import Budget
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.caching import cached_units
from edgempi.finetune.checkpoint.position import spec_fingerprint
from edgempi.finetune.evaluate import LabelTexts, Reading, classes, scores
from edgempi.finetune.loss import is_score
from edgempi.finetune.metrics import Metric, metric_for
from edgempi.finetune.optim import Method, Optimizing, Schedule, default_rate
from edgempi.finetune.picked import Data
from edgempi.finetune.rhythm import Goal, Rhythm
from edgempi.plan.spec import Head, ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

CACHES = "~/.cache/edgempi/activations"
"""Where activations are cached unless somebody names another folder."""


def optimizing_of(optimizer: OptimizerConfig, technique: TechniqueConfig) -> Optimizing:
    """How tensors are updated."""
    method = Method(optimizer.name.value)
    rate = optimizer.rate
    return Optimizing(
        method=method,
        rate=default_rate(method, Technique(technique.name.value)) if rate is None else rate,
        schedule=Schedule(optimizer.schedule.value),
        warm_up=optimizer.warm_up,
        weight_decay=optimizer.weight_decay,
        clip=optimizer.clip,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        momentum=optimizer.momentum,
    )


def known_by(
    optimizing: Optimizing, optimizer: OptimizerConfig, data: FinetuneDataConfig, weight_dtype: str, samples: Data
) -> dict[str, Any]:
    """What a run's losses follow from beside model and technique: who resumes it has all of it alike.

    How long it is may change: a run can be gone on with for more epochs.
    """
    own = ("rate", "schedule", "warm_up", "weight_decay", "clip", "betas", "eps", "momentum")
    return {
        "rows": len(samples.samples),
        "content of the rows": samples.fingerprint(np.arange(len(samples.samples))),
        "finetune_data.batch": data.batch,
        "finetune_data.seed": data.seed,
        "weights.dtype": weight_dtype,
        "optimizer.accumulate": optimizer.accumulate,
        **{f"optimizer.{name}": getattr(optimizing, name) for name in own},
    }


def rhythm_of(evaluation: EvaluationConfig, evaluates: bool) -> Rhythm:
    """How often a run logs, evaluates and saves.

    Args:
        evaluation: as it is wanted.
        evaluates: whether there are rows to evaluate on.
    """
    every = evaluation.every_steps if evaluates else None
    return Rhythm(evaluation.log_every_steps, every, evaluation.save_every_steps)


def goal_of(evaluation: EvaluationConfig, judged: Judged) -> Goal:
    """Which checkpoint is the best."""
    default = "loss" if judged.reading is None else judged.names[0]
    return Goal(evaluation.metric or default, evaluation.patience, evaluation.gain)


@dataclass(frozen=True)
class Judged:
    """How outputs are read and scored.

    Attributes:
        reading: None: the loss of tokens is all that is said.
        metric: makes a metric for what it gives.
        names: of the figures that count.
    """

    reading: Reading | None
    metric: Callable[[], Metric]
    names: tuple[str, ...]

    @classmethod
    def of(cls, spec: ModelSpec, names: Sequence[str], label_ids: Sequence[Sequence[int]]) -> Judged:
        """By the head, and where labels are written as text, by their token ids.

        Args:
            spec: the model with the head that is fine-tuned.
            names: the task's metrics.
            label_ids: of the classes; none where they are not written.
        """
        if label_ids:
            return cls(LabelTexts(label_ids), partial(metric_for, names, len(label_ids)), tuple(names))
        if spec.head.vocabulary:
            return cls(None, partial(metric_for, ("token_loss",)), ("token_loss",))
        return cls(
            scores if is_score(spec.head) else classes, partial(metric_for, names, spec.head.rows), tuple(names)
        )  # fmt: skip


def check_cache(cache: CacheConfig, tuning: Tuning) -> None:
    """Refuse a projection that the side network does not read.

    Raises:
        UserError: the side network reads all columns, or fewer or more of them than are kept.
    """
    if cache.factor > 1 and (tuning.down_rank != 0 or tuning.reduction != cache.factor):
        raise UserError(
            "cache.factor", value=cache.factor,
            rule="activations are projected before caching where fixed downsamplers would do it after, by as much",
            remedy="Set technique=parallel_adapter_fixed and technique.reduction to the same number, or cache.factor=1",
        )  # fmt: skip


def key_of(
    cache: CacheConfig, spec: ModelSpec, tuning: Tuning, weight_dtype: str, prints: Mapping[str, Any]
) -> CacheKey:
    """What cached activations depend on.

    Args:
        cache: their form.
        spec: the model.
        tuning: the side network.
        weight_dtype: what the backbone computes in.
        prints: fingerprints of `model`, `tokenizer` and `template`, and `truncation`, the most tokens of each stack.
    """
    layers = cached_units(spec, tuning)
    return CacheKey(
        # The same weights give other activations under another configuration; a new head does not.
        model=f"{prints['model']}-{spec_fingerprint(replace(spec, head=Head()))}",
        tokenizer=prints["tokenizer"],
        template=prints["template"],
        truncation=tuple(prints["truncation"]),
        layers=layers,
        width=spec.stacks[spec.last].width,
        dtype=cache.dtype.value,
        factor=cache.factor,
        full=("head",) if cache.factor > 1 and "head" in layers else (),
        compute_dtype=weight_dtype,
    )


def cache_place(cache: CacheConfig, device: str) -> tuple[Path, Budget]:
    """The folder of a device's caches, and what they may take."""
    return Path(cache.folder or CACHES).expanduser() / device, Budget(cache.memory_bytes, cache.disk_bytes)
