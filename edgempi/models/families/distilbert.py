"""DistilBERT: BERT's encoder at half depth, without token types and pooler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import Family, Source, look_up, prefixed
from edgempi.models.families.heads import encoder_head
from edgempi.plan.spec import Embedding, ModelSpec, Stack

LAYER = {
    "attention.q": "attention.q_lin",
    "attention.k": "attention.k_lin",
    "attention.v": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention.norm": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "mlp.norm": "output_layer_norm",
}
TOP = {
    "enc.embed.tokens": "embeddings.word_embeddings",
    "enc.embed.positions": "embeddings.position_embeddings",
    "enc.embed.norm": "embeddings.LayerNorm",
}
HEAD = {
    "head.dense": ("pre_classifier", "vocab_transform"),
    "head.norm": ("vocab_layer_norm",),
    "head.out": ("classifier", "vocab_projector"),
}
NORM_EPS = 1e-12  # fixed in the published model, not in its configuration


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a DistilBertConfig."""
    head_dim = config.dim // config.n_heads
    stack = Stack(
        layers=config.n_layers,
        width=config.dim,
        heads=config.n_heads,
        kv_heads=config.n_heads,
        head_dim=head_dim,
        mlp_columns=config.hidden_dim,
        activation=config.activation,
        norm_eps=NORM_EPS,
        norm_first=False,
        attention_scales=(head_dim**-0.5,) * config.n_layers,
        embedding=Embedding(
            vocabulary=config.vocab_size, width=config.dim, positions=config.max_position_embeddings, norm=True
        ),
    )
    return ModelSpec(
        family="distilbert",
        enc=stack,
        dec=None,
        head=encoder_head(config, names, "vocab_projector.weight", config.activation, "relu"),
        max_tokens=config.max_position_embeddings,
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    stem, _, kind = parameter.rpartition(".")
    if stem in HEAD:
        return Source(tuple(f"{name}.{kind}" for name in HEAD[stem]))
    if found := look_up(parameter, TOP):
        return Source(prefixed("distilbert.", found))
    _, layer, rest = parameter.split(".", 2)
    return Source(prefixed("distilbert.", f"transformer.layer.{layer}.{look_up(rest, LAYER)}"))


FAMILY = Family("distilbert", spec, source)
