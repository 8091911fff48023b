"""OPT: a decoder with ReLU and learned positions counted over unmasked tokens; the 350m is post-norm and projected."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import Family, Source, look_up, stop_tokens
from edgempi.models.families.heads import decoder_head
from edgempi.plan.spec import Embedding, ModelSpec, Stack

LAYER = {
    "attention.norm": "self_attn_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "mlp.norm": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
TOP = {
    "dec.embed.tokens": "embed_tokens",
    "dec.embed.positions": "embed_positions",
    "dec.embed.project": "project_in",
    "dec.norm": "final_layer_norm",
    "head.project": "project_out",
}
POSITION_OFFSET = 2  # the position table's first two rows are unused


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate an OPTConfig."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    project = config.word_embed_proj_dim if config.word_embed_proj_dim != width else 0
    stack = Stack(
        layers=config.num_hidden_layers,
        width=width,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        mlp_columns=config.ffn_dim,
        activation=config.activation_function,
        norm_first=config.do_layer_norm_before,
        norm_affine=config.layer_norm_elementwise_affine,
        final_norm=config.do_layer_norm_before and not config._remove_final_layer_norm,
        causal=True,
        qkv_bias=config.enable_bias,
        out_bias=config.enable_bias,
        mlp_bias=config.enable_bias,
        attention_scales=(head_dim**-0.5,) * config.num_hidden_layers,
        embedding=Embedding(
            vocabulary=config.vocab_size,
            width=config.word_embed_proj_dim,
            positions=config.max_position_embeddings + POSITION_OFFSET,
            position_rule="mask",
            position_offset=POSITION_OFFSET,
        ),
    )
    return ModelSpec(
        family="opt",
        enc=None,
        dec=stack,
        head=decoder_head(config, names, project),
        max_tokens=config.max_position_embeddings,
        stop_tokens=stop_tokens(config),
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands; exports of three generations differ in their prefix."""
    if parameter == "head.out.weight":
        return Source(("lm_head.weight", "score.weight"))
    found = look_up(parameter, TOP)
    if not found:
        _, layer, rest = parameter.split(".", 2)
        found = f"layers.{layer}.{look_up(rest, LAYER)}"
    return Source((f"model.decoder.{found}", f"decoder.{found}"))


FAMILY = Family("opt", spec, source)
