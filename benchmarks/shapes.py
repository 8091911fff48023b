"""The models that the experiments time, as sizes alone: weights are random, so the figures speak of speed and memory.

The first five are those of Galaxy (arXiv 2405.17245), Table I, with the public configurations of their families; OPT-L
has the 32 heads of OPT-1.3B, its published twin. Those with two stacks are PAC's (arXiv 2408.10746).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's size.

    Args:
        config: the transformers configuration class.
        layers, heads, width: as the paper's table gives them; of each stack.
        fields: the configuration's other fields, where its defaults are of another size.
        maker: the class of transformers that makes the model from a configuration.
        decoder: the configuration's name for a second stack's number of layers.
    """

    config: str
    layers: int
    heads: int
    width: int
    fields: dict[str, Any] = field(default_factory=dict)
    maker: str = "AutoModel"
    decoder: str = ""


TEXT_TO_TEXT = "AutoModelForSeq2SeqLM"
GALAXY = {
    "distilbert": Shape("DistilBertConfig", 6, 12, 768),
    "bert_large": Shape("BertConfig", 24, 16, 1024, {"intermediate_size": 4096}),
    "gpt2_large": Shape("GPT2Config", 36, 20, 1280),
    "opt_l": Shape("OPTConfig", 24, 32, 2048, {"ffn_dim": 8192, "word_embed_proj_dim": 2048}),
    "opt_xl": Shape("OPTConfig", 32, 32, 2560, {"ffn_dim": 10240, "word_embed_proj_dim": 2560}),
}
PAC = {
    "t5_base": Shape("T5Config", 12, 12, 768, {"d_ff": 3072}, TEXT_TO_TEXT, "num_decoder_layers"),
    "bart_large": Shape("BartConfig", 12, 16, 1024, {}, TEXT_TO_TEXT, "decoder_layers"),
    "t5_large": Shape("T5Config", 24, 16, 1024, {"d_ff": 4096}, TEXT_TO_TEXT, "num_decoder_layers"),
}
OWN = {
    "small": Shape(
        "BertConfig", 2, 4, 128, {"intermediate_size": 256, "vocab_size": 1024, "max_position_embeddings": 128}
    ),
    "tiny": Shape("BertConfig", 2, 4, 64, {"intermediate_size": 96, "vocab_size": 128}),
    "tiny_t5": Shape(
        "T5Config", 2, 4, 64, {"d_ff": 96, "d_kv": 16, "vocab_size": 1024}, TEXT_TO_TEXT, "num_decoder_layers"
    ),
}
SHAPES = {**GALAXY, **PAC, **OWN}
"""By name; the tiny ones are for tests, the small one is trained here."""
