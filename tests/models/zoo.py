"""Small random models of every family, every parameter redrawn so that no mistake can hide behind a zero or a one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCABULARY, PAD = 61, 3
ENCODER = {"vocab_size": VOCABULARY, "pad_token_id": PAD}


@dataclass(frozen=True)
class Model:
    """A family member: its class and configuration, by name, so that the list imports nothing heavy."""

    name: str
    cls: str
    config: str
    fields: dict[str, Any]

    @property
    def two_stacks(self) -> bool:
        """Whether it is an encoder-decoder."""
        return self.config in ("T5Config", "BartConfig") and "Encoder" not in self.cls


def _bert(**more: Any) -> dict[str, Any]:
    base = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 52}
    return {**ENCODER, **base, "max_position_embeddings": 48, "type_vocab_size": 2, **more}


def _llama(**more: Any) -> dict[str, Any]:
    base = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3}
    return {**ENCODER, **base, "intermediate_size": 44, "max_position_embeddings": 64, "head_dim": 8, **more}


def _distilbert(**more: Any) -> dict[str, Any]:
    base = {"dim": 40, "n_layers": 3, "n_heads": 5, "hidden_dim": 52, "max_position_embeddings": 48}
    return {**ENCODER, **base, **more}


def _gpt2(**more: Any) -> dict[str, Any]:
    return {**ENCODER, "n_embd": 40, "n_layer": 3, "n_head": 5, "n_positions": 48, "n_inner": 52, **more}


def _opt(**more: Any) -> dict[str, Any]:
    base = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "ffn_dim": 52}
    return {**ENCODER, **base, "max_position_embeddings": 48, "word_embed_proj_dim": 40, **more}


def _t5(**more: Any) -> dict[str, Any]:
    base = {"d_model": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 5, "d_kv": 6, "d_ff": 52}
    small = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    return {**ENCODER, **base, **small, "decoder_start_token_id": PAD, **more}


def _bart(**more: Any) -> dict[str, Any]:
    base = {"d_model": 40, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 48}
    heads = {"encoder_attention_heads": 5, "decoder_attention_heads": 5, "encoder_ffn_dim": 52, "decoder_ffn_dim": 52}
    return {**ENCODER, **base, **heads, "scale_embedding": True, "forced_eos_token_id": None, **more}


FAMILIES = (
    Model("distilbert", "DistilBertForMaskedLM", "DistilBertConfig", _distilbert()),
    Model("bert", "BertForMaskedLM", "BertConfig", _bert()),
    Model("roberta", "RobertaForMaskedLM", "RobertaConfig", _bert()),
    Model("gpt2", "GPT2LMHeadModel", "GPT2Config", _gpt2()),
    Model("opt", "OPTForCausalLM", "OPTConfig", _opt()),
    Model("llama", "LlamaForCausalLM", "LlamaConfig", _llama()),
    Model("mistral", "MistralForCausalLM", "MistralConfig", _llama(sliding_window=5)),
    Model("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _llama(tie_word_embeddings=True)),
    Model("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _llama(head_dim=12)),
    Model("t5", "T5ForConditionalGeneration", "T5Config", _t5()),
    Model("bart", "BartForConditionalGeneration", "BartConfig", _bart()),
)
"""One of each family: run under every way of sharing."""

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS = (
    Model("bert-base", "BertModel", "BertConfig", _bert()),
    Model("bert-classifier", "BertForSequenceClassification", "BertConfig", _bert(num_labels=3)),
    Model("bert-tags", "BertForTokenClassification", "BertConfig", _bert(num_labels=7)),
    Model("roberta-classifier", "RobertaForSequenceClassification", "RobertaConfig", _bert(num_labels=3)),
    Model("distilbert-classifier", "DistilBertForSequenceClassification", "DistilBertConfig", _distilbert()),
    Model("distilbert-base", "DistilBertModel", "DistilBertConfig", _distilbert(activation="relu")),
    Model("gpt2-base", "GPT2Model", "GPT2Config", _gpt2(scale_attn_by_inverse_layer_idx=True)),
    Model("gpt2-classifier", "GPT2ForSequenceClassification", "GPT2Config", _gpt2(num_labels=3)),
    Model(
        "opt-350m", "OPTForCausalLM", "OPTConfig", _opt(word_embed_proj_dim=24, do_layer_norm_before=False)
    ),
    Model("opt-bare", "OPTForCausalLM", "OPTConfig", _opt(enable_bias=False, layer_norm_elementwise_affine=False)),
    Model("llama-biased", "LlamaForCausalLM", "LlamaConfig", _llama(attention_bias=True, mlp_bias=True)),
    Model("llama3", "LlamaForCausalLM", "LlamaConfig", _llama(rope_parameters=LLAMA3)),
    Model("llama-one-head", "LlamaForCausalLM", "LlamaConfig", _llama(num_key_value_heads=1)),
    Model(
        "qwen3-windows", "Qwen3ForCausalLM", "Qwen3Config",
        _llama(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    Model("t5-gated", "T5ForConditionalGeneration", "T5Config", _t5(feed_forward_proj="gated-gelu")),
    Model("t5-encoder", "T5EncoderModel", "T5Config", _t5()),
    Model("t5-base", "T5Model", "T5Config", _t5()),
    Model(
        "bart-uneven", "BartForConditionalGeneration", "BartConfig",
        _bart(decoder_attention_heads=4, decoder_ffn_dim=36),
    ),
)  # fmt: skip
"""What the families' checkpoints vary in: heads, biases, windows, projections."""


def build(model: Model, folder: Path, dtype: str = "float32") -> Any:
    """Make the model with every parameter redrawn, save it to `folder`, and return it in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, model.config)(**model.fields)
    made = getattr(transformers, model.cls)(config).eval()
    redraw(made)
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    return made


SCORES = ("q_proj", "k_proj", "q_lin", "k_lin", "query", "key", "c_attn", ".q.", ".k.")
"""Parts of the names of weights that make attention scores."""


def redraw(model: Any, seed: int = 1) -> None:
    """Draw every parameter anew: gains around one, biases and positions away from zero, attention logits spread."""
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n == "final_logits_bias")]
    for name, parameter in tensors:
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.dim() == 1 and name.endswith("weight")
        if gain:
            value = 1 + 0.3 * noise
        elif parameter.dim() == 1 or "bias" in name:
            value = 0.3 * noise
        elif any(part in name for part in SCORES):
            value = noise * (2.0 / parameter.shape[-1] ** 0.5)
        else:
            value = noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def inputs(model: Model, rows: int, tokens: int, padded: bool) -> dict[str, torch.Tensor]:
    """Seeded ids, by the names that transformers' forward uses; padding on the right of all rows but the first."""
    generator = torch.Generator().manual_seed(rows * 100 + tokens)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(4, VOCABULARY, (rows, length), generator=generator)

    found = {"input_ids": ids(tokens)}
    if padded:
        lengths = [max(1, tokens - 2 * row) for row in range(rows)]
        mask = (torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]).long()
        found["attention_mask"] = mask
        found["input_ids"] = torch.where(mask.bool(), found["input_ids"], PAD)
    if model.two_stacks:
        found["decoder_input_ids"] = ids(max(1, tokens // 2 + 1))
    return found


Builder = Callable[[Model, Path], Any]
