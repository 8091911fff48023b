"""Llama, Mistral, Qwen2 and Qwen3: pre-norm decoders with RMSNorm, rotary positions and a gated MLP."""

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
from edgempi.plan.spec import Embedding, ModelSpec, Rotary, Stack

LAYER = {
    "attention.norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
TOP = {"dec.embed.tokens": "embed_tokens", "dec.norm": "norm"}


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a LlamaConfig, MistralConfig, Qwen2Config or Qwen3Config."""
    kind = config.model_type
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention_bias = bool(getattr(config, "attention_bias", False))
    stack = Stack(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        mlp_columns=config.intermediate_size,
        activation=config.hidden_act,
        gated=True,
        norm="rms",
        norm_eps=config.rms_norm_eps,
        final_norm=True,
        causal=True,
        qkv_bias=attention_bias or kind == "qwen2",
        out_bias=attention_bias and kind != "qwen2",
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
        attention_scales=(head_dim**-0.5,) * config.num_hidden_layers,
        windows=_windows(config),
        rotary=_rotary(config, head_dim),
        embedding=Embedding(vocabulary=config.vocab_size, width=config.hidden_size),
    )
    return ModelSpec(
        family=kind,
        enc=None,
        dec=stack,
        head=decoder_head(config, names),
        max_tokens=config.max_position_embeddings,
        stop_tokens=stop_tokens(config),
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if parameter == "head.out.weight":
        return Source(("lm_head.weight", "score.weight"))
    if found := look_up(parameter, TOP):
        return Source(prefixed("model.", found))
    _, layer, rest = parameter.split(".", 2)
    return Source(prefixed("model.", f"layers.{layer}.{look_up(rest, LAYER)}"))


def _windows(config: Any) -> tuple[int | None, ...]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return (window if config.model_type == "mistral" else None,) * layers


def _rotary(config: Any, head_dim: int) -> Rotary:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise refuse("partial_rotary_factor", parameters["partial_rotary_factor"], "the whole head is rotated")
    if kind == "default":
        # The same float operations as transformers, so that the angles are equal to the last bit.
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        frequencies, scale = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    else:
        raise refuse("rope_type", kind, "default, linear, llama3 or yarn (others change with the length)")
    return Rotary(tuple(frequencies.tolist()), float(scale))


FAMILIES = tuple(Family(name, spec, source) for name in ("llama", "mistral", "qwen2", "qwen3"))
