"""The models that the experiments time, as sizes alone: weights are random, so the figures speak of speed and memory.

The five are those of Galaxy (arXiv 2405.17245), Table I, with the public configurations of their families; OPT-L has
the 32 heads of OPT-1.3B, its published twin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's size.

    Args:
        config: the transformers configuration class.
        layers, heads, width: as Table I gives them.
        fields: the configuration's other fields, where its defaults are of another size.
    """

    config: str
    layers: int
    heads: int
    width: int
    fields: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "distilbert": Shape("DistilBertConfig", 6, 12, 768),
    "bert_large": Shape("BertConfig", 24, 16, 1024, {"intermediate_size": 4096}),
    "gpt2_large": Shape("GPT2Config", 36, 20, 1280),
    "opt_l": Shape("OPTConfig", 24, 32, 2048, {"ffn_dim": 8192, "word_embed_proj_dim": 2048}),
    "opt_xl": Shape("OPTConfig", 32, 32, 2560, {"ffn_dim": 10240, "word_embed_proj_dim": 2560}),
    "tiny": Shape("BertConfig", 2, 4, 64, {"intermediate_size": 96, "vocab_size": 128}),
}
"""By name; `tiny` is for tests."""
