"""GPT-2: a pre-norm decoder with learned positions, whose linears are stored as (in, out) with Q, K, V fused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import (
    Family,
    Source,
    look_up,
    prefixed,
    refuse,
    stop_tokens,
)
from edgempi.models.families.heads import decoder_head
from edgempi.plan.spec import Embedding, ModelSpec, Stack

LAYER = {
    "attention.norm": "ln_1",
    "attention.q": "attn.c_attn",
    "attention.k": "attn.c_attn",
    "attention.v": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
TOP = {"dec.embed.tokens": "wte", "dec.embed.positions": "wpe", "dec.norm": "ln_f"}
FUSED = {"attention.q": (0, 3), "attention.k": (1, 3), "attention.v": (2, 3)}


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a GPT2Config."""
    if config.add_cross_attention:
        raise refuse("add_cross_attention", True, "GPT-2 is a decoder alone")
    head_dim = config.n_embd // config.n_head
    base = head_dim**-0.5 if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    stack = Stack(
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=head_dim,
        mlp_columns=config.n_inner or 4 * config.n_embd,
        activation=config.activation_function,
        norm_eps=config.layer_norm_epsilon,
        final_norm=True,
        causal=True,
        attention_scales=tuple(base / (i + 1) if by_layer else base for i in range(config.n_layer)),
        embedding=Embedding(vocabulary=config.vocab_size, width=config.n_embd, positions=config.n_positions),
    )
    return ModelSpec(
        family="gpt2",
        enc=None,
        dec=stack,
        head=decoder_head(config, names),
        max_tokens=config.n_positions,
        stop_tokens=stop_tokens(config),
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if parameter == "head.out.weight":
        return Source(("lm_head.weight", "score.weight"))
    if found := look_up(parameter, TOP):
        return Source(prefixed("transformer.", found))
    _, layer, rest = parameter.split(".", 2)
    stem, _, kind = rest.rpartition(".")
    names = prefixed("transformer.", f"h.{layer}.{look_up(rest, LAYER)}")
    return Source(names, transposed=kind == "weight" and "norm" not in stem, part=FUSED.get(stem, (0, 1)))


FAMILY = Family("gpt2", spec, source)
