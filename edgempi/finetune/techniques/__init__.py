"""What is trained, and how it starts: every technique provides the one Transformer's weights in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques.adapter import Adapter
from edgempi.finetune.techniques.initialise import Begin, Initial, blank, randomly
from edgempi.finetune.techniques.lora import LoRA
from edgempi.finetune.techniques.providers import Tuned, learning_dtype
from edgempi.finetune.techniques.prune import Pruned, first_layers
from edgempi.finetune.techniques.side import Side
from edgempi.finetune.techniques.sources import Source
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

PROVIDERS: dict[Technique, type[Tuned]] = {
    Technique.full: Tuned,
    Technique.lora: LoRA,
    Technique.adapter: Adapter,
    Technique.parallel_adapter: Tuned,
}


def provider(
    source: Source, spec: ModelSpec, units: Sequence[str], tuning: Tuning, dtype: torch.dtype, trained: Trained
) -> Tuned:
    """What the model's units are built from under a technique; see `Tuned`."""
    return PROVIDERS[tuning.technique](source, spec, units, tuning, dtype, trained)


def beginning(
    initial: Initial, source: Source, spec: ModelSpec, units: tuple[str, ...], tuning: Tuning, dtype: torch.dtype
) -> Begin:
    """What makes the start of a side network's parameters."""
    match initial:
        case Initial.magnitude:
            return Pruned(source.weights(spec, (*first_layers(spec, units), *units), dtype), tuning)
        case Initial.random:
            return randomly(tuning.merge)
        case Initial.blank:
            return blank


__all__ = ["Initial", "Side", "Source", "beginning", "learning_dtype", "provider"]
