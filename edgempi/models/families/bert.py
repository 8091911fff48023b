"""BERT: a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from edgempi.models.families.base import Family, Source, look_up, prefixed, refuse
from edgempi.models.families.heads import encoder_head
from edgempi.plan.spec import Embedding, ModelSpec, Stack

LAYER = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp.norm": "output.LayerNorm",
}
TOP = {
    "enc.embed.tokens": "embeddings.word_embeddings",
    "enc.embed.positions": "embeddings.position_embeddings",
    "enc.embed.types": "embeddings.token_type_embeddings",
    "enc.embed.norm": "embeddings.LayerNorm",
}
HEAD = {
    "head.dense": ("cls.predictions.transform.dense", "bert.pooler.dense", "pooler.dense"),
    "head.norm": ("cls.predictions.transform.LayerNorm",),
}


def encoder(config: Any, position_rule: str, position_offset: int) -> Stack:
    """The stack of BERT and of RoBERTa, which differ in how positions are counted."""
    if config.is_decoder or config.add_cross_attention:
        raise refuse("is_decoder", True, "BERT and RoBERTa run as encoders")
    head_dim = config.hidden_size // config.num_attention_heads
    return Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        mlp_columns=config.intermediate_size,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        norm_first=False,
        attention_scales=(head_dim**-0.5,) * config.num_hidden_layers,
        embedding=Embedding(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            positions=config.max_position_embeddings,
            position_rule=position_rule,
            position_offset=position_offset,
            types=config.type_vocab_size,
            norm=True,
        ),
    )


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a BertConfig."""
    return ModelSpec(
        family="bert",
        enc=encoder(config, "index", 0),
        dec=None,
        head=encoder_head(config, names, "cls.predictions.decoder.weight", config.hidden_act, "tanh"),
        max_tokens=config.max_position_embeddings,
        pad_token=config.pad_token_id,
    )


def encoder_source(prefix: str) -> Callable[[str], Source | None]:
    """Where the encoder's parameters stand, for a base-model prefix; exports of 2018 say gamma and beta."""

    def source(parameter: str) -> Source | None:
        found = look_up(parameter, TOP)
        if not found and parameter.startswith("enc."):
            _, layer, rest = parameter.split(".", 2)
            found = f"encoder.layer.{layer}.{look_up(rest, LAYER)}"
        if not found:
            return None
        old = found.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return Source((*prefixed(prefix, found), *prefixed(prefix, old)))

    return source


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if found := encoder_source("bert.")(parameter):
        return found
    stem, _, kind = parameter.rpartition(".")
    if stem in HEAD:
        return Source(tuple(f"{name}.{kind}" for name in HEAD[stem]))
    masked = {"weight": "cls.predictions.decoder.weight", "bias": "cls.predictions.bias"}[kind]
    return Source((f"classifier.{kind}", masked))


FAMILY = Family("bert", spec, source)
