"""The heads that families share: what stands on a decoder, and what stands on an encoder."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgempi.models.families.base import architecture, refuse_class, tied
from edgempi.plan.spec import Head


def decoder_head(config: Any, names: Collection[str], project_width: int = 0) -> Head:
    """The head of a decoder: the next token, a label read at the last token, or none.

    Args:
        config: a transformers configuration.
        names: of the checkpoint's tensors.
        project_width: of a projection before the output; 0: none.
    """
    kind, family = architecture(config), _family(config)
    if kind in (f"{family}ForCausalLM", f"{family}LMHeadModel"):
        own = tied(config, names, "lm_head.weight")
        return Head(rows=config.vocab_size, vocabulary=True, tied=own, project_width=project_width)
    if kind == f"{family}ForSequenceClassification":
        return Head(rows=config.num_labels, select="last", project_width=project_width)
    if kind == f"{family}Model":
        return Head(project_width=project_width)
    raise refuse_class(kind, f"{family}'s causal language model, sequence classifier or base model")


def encoder_head(config: Any, names: Collection[str], own: str, masked: str, pooler: str) -> Head:
    """The head of an encoder: words for the mask, a label of the first token or of each, the pooler, or none.

    Args:
        config: a transformers configuration.
        names: of the checkpoint's tensors.
        own: the name of a masked-language-model output weight that is not tied.
        masked: the activation of the layer before that output.
        pooler: the activation of the layer before a label.
    """
    kind, family = architecture(config), _family(config)
    if kind == f"{family}ForMaskedLM":
        return Head(
            rows=config.vocab_size, vocabulary=True, tied=tied(config, names, own), bias=True,
            dense=True, dense_activation=masked, dense_norm=True,
        )  # fmt: skip
    if kind == f"{family}ForSequenceClassification":
        return Head(rows=config.num_labels, select="first", bias=True, dense=True, dense_activation=pooler)
    if kind == f"{family}ForTokenClassification":
        return Head(rows=config.num_labels, bias=True)
    if kind == f"{family}Model":
        pooled = any(name.endswith("pooler.dense.weight") for name in names)
        return Head(select="first", dense=True, dense_activation=pooler) if pooled else Head()
    raise refuse_class(kind, f"{family}ForMaskedLM, -SequenceClassification, -TokenClassification or {family}Model")


def _family(config: Any) -> str:
    """The stem of the family's class names: `Bert` of `BertConfig`."""
    return type(config).__name__.removesuffix("Config")
