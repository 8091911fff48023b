"""RoBERTa: BERT's encoder with positions counted over the tokens that are not padding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import Family, Source
from edgempi.models.families.bert import encoder, encoder_source
from edgempi.models.families.heads import encoder_head
from edgempi.plan.spec import ModelSpec

HEAD = {
    "head.dense": ("lm_head.dense", "classifier.dense", "roberta.pooler.dense", "pooler.dense"),
    "head.norm": ("lm_head.layer_norm",),
}
OUT = {
    "head.out.weight": ("classifier.out_proj.weight", "classifier.weight", "lm_head.decoder.weight"),
    "head.out.bias": ("classifier.out_proj.bias", "classifier.bias", "lm_head.bias"),
}


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a RobertaConfig."""
    first = config.pad_token_id + 1
    return ModelSpec(
        family="roberta",
        enc=encoder(config, "token", config.pad_token_id),
        dec=None,
        head=encoder_head(config, names, "lm_head.decoder.weight", "gelu", "tanh"),
        max_tokens=config.max_position_embeddings - first,
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if found := encoder_source("roberta.")(parameter):
        return found
    if parameter in OUT:
        return Source(OUT[parameter])
    stem, _, kind = parameter.rpartition(".")
    return Source(tuple(f"{name}.{kind}" for name in HEAD[stem]))


FAMILY = Family("roberta", spec, source)
