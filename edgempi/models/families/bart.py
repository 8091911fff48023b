"""BART: a post-norm encoder-decoder with learned positions and normed embeddings."""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt
from typing import Any

from edgempi.models.families.base import (
    Family,
    Source,
    architecture,
    look_up,
    prefixed,
    refuse_class,
    stop_tokens,
    tied,
)
from edgempi.plan.spec import Embedding, Head, ModelSpec, Stack

TOWERS = {"enc": "encoder", "dec": "decoder"}
LAYER = {
    "attention.norm": "self_attn_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "cross.norm": "encoder_attn_layer_norm",
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.out": "encoder_attn.out_proj",
    "mlp.norm": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
EMBED = {"positions": "embed_positions", "norm": "layernorm_embedding"}
POSITION_OFFSET = 2  # the position tables' first two rows are unused


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a BartConfig."""
    kind = architecture(config)
    lm = kind == "BartForConditionalGeneration"
    if not lm and kind != "BartModel":
        raise refuse_class(kind, "BartForConditionalGeneration or BartModel")
    head = Head(
        rows=config.vocab_size, vocabulary=True, tied=tied(config, names, "lm_head.weight"),
        bias="final_logits_bias" in names,
    )  # fmt: skip
    return ModelSpec(
        family="bart",
        enc=_stack(config, config.encoder_layers, config.encoder_attention_heads, config.encoder_ffn_dim, False),
        dec=_stack(config, config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim, True),
        head=head if lm else Head(),
        max_tokens=config.max_position_embeddings,
        start_token=config.decoder_start_token_id,
        stop_tokens=stop_tokens(config),
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if parameter == "head.out.weight":
        return Source(("lm_head.weight",))
    if parameter == "head.out.bias":
        return Source(("final_logits_bias",))
    stack, unit, rest = parameter.split(".", 2)
    tower = TOWERS[stack]
    if unit == "embed":
        if rest == "tokens.weight":
            return Source(prefixed("model.", "shared.weight") + prefixed("model.", f"{tower}.embed_tokens.weight"))
        return Source(prefixed("model.", f"{tower}.{look_up(rest, EMBED)}"))
    return Source(prefixed("model.", f"{tower}.layers.{unit}.{look_up(rest, LAYER)}"))


def _stack(config: Any, layers: int, heads: int, columns: int, decoder: bool) -> Stack:
    head_dim = config.d_model // heads
    return Stack(
        layers=layers,
        width=config.d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        mlp_columns=columns,
        activation=config.activation_function,
        norm_first=False,
        causal=decoder,
        cross=decoder,
        attention_scales=(head_dim**-0.5,) * layers,
        embedding=Embedding(
            vocabulary=config.vocab_size,
            width=config.d_model,
            positions=config.max_position_embeddings + POSITION_OFFSET,
            position_offset=POSITION_OFFSET,
            norm=True,
            scale=sqrt(config.d_model) if config.scale_embedding else 1.0,
            shared=decoder,
        ),
    )


FAMILY = Family("bart", spec, source)
