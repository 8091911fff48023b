"""T5 (and 1.1, Flan): pre-norm encoder-decoder with RMSNorm, relative position buckets and no attention scale."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import Family, Source, architecture, refuse_class, stop_tokens
from edgempi.plan.spec import Embedding, Head, ModelSpec, Relative, Stack

TOWERS = {"enc": "encoder", "dec": "decoder"}
ATTENTION = {"q": "q", "k": "k", "v": "v", "out": "o"}
MLP = {"up": ("wi", "wi_1"), "gate": ("wi_0",), "down": ("wo",)}


def spec(config: Any, names: Collection[str]) -> ModelSpec:
    """Translate a T5Config."""
    kind = architecture(config)
    # transformers always ties T5's head unless the file holds one of its own; 1.1 differs by not scaling its input.
    lm = kind == "T5ForConditionalGeneration"
    if not lm and kind not in ("T5Model", "T5EncoderModel"):
        raise refuse_class(kind, "T5ForConditionalGeneration, T5Model or T5EncoderModel")
    scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
    head = Head(rows=config.vocab_size, vocabulary=True, tied="lm_head.weight" not in names, scale=scale)
    start = getattr(config, "decoder_start_token_id", None)  # transformers leaves it out where none was given
    return ModelSpec(
        family="t5",
        enc=_stack(config, config.num_layers, decoder=False),
        dec=None if kind == "T5EncoderModel" else _stack(config, config.num_decoder_layers, decoder=True),
        head=head if lm else Head(),
        max_tokens=None,
        start_token=config.pad_token_id if start is None else start,
        stop_tokens=stop_tokens(config),
        pad_token=config.pad_token_id,
    )


def source(parameter: str) -> Source:
    """Where a parameter stands."""
    if parameter == "head.out.weight":
        return Source(("lm_head.weight",))
    stack, unit, rest = parameter.split(".", 2)
    tower = TOWERS[stack]
    if unit == "embed":
        return Source(("shared.weight", f"{tower}.embed_tokens.weight"))
    if unit == "norm":
        return Source((f"{tower}.final_layer_norm.weight",))
    if unit == "relative":
        return Source((f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
    block, part, _ = rest.split(".")
    place = {"attention": 0, "cross": 1, "mlp": 2 if stack == "dec" else 1}[block]
    at = f"{tower}.block.{unit}.layer.{place}"
    if part == "norm":
        return Source((f"{at}.layer_norm.weight",))
    if block == "mlp":
        return Source(tuple(f"{at}.DenseReluDense.{name}.weight" for name in MLP[part]))
    kind = "EncDecAttention" if block == "cross" else "SelfAttention"
    return Source((f"{at}.{kind}.{ATTENTION[part]}.weight",))


def _stack(config: Any, layers: int, decoder: bool) -> Stack:
    return Stack(
        layers=layers,
        width=config.d_model,
        heads=config.num_heads,
        kv_heads=config.num_heads,
        head_dim=config.d_kv,
        mlp_columns=config.d_ff,
        activation=config.dense_act_fn,
        gated=config.is_gated_act,
        norm="rms",
        norm_eps=config.layer_norm_epsilon,
        final_norm=True,
        causal=decoder,
        cross=decoder,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        attention_scales=(1.0,) * layers,
        relative=Relative(
            buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
            bidirectional=not decoder,
        ),
        embedding=Embedding(vocabulary=config.vocab_size, width=config.d_model, shared=decoder),
    )


FAMILY = Family("t5", spec, source)
