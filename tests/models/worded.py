"""Small random models with a tokenizer of whole words, for tasks that begin with text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgempi.finetune.data.generated import vocabulary
from edgempi.finetune.data.glue import LAYOUTS
from models.zoo import FAMILIES, build

SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
FIELDS: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 96},
    "llama": {"max_position_embeddings": 96},
    "t5": {"d_kv": 8, "d_ff": 56},
}
"""Of a model, what a side network of half the width needs."""


def build_worded(name: str, folder: Path) -> None:
    """Make a model of a family, and a tokenizer that knows the words of the generated tasks.

    Args:
        name: one of `FIELDS`.
        folder: of the checkpoint.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tasks = [layout.task for layout in LAYOUTS.values()]
    asked = [word for task in tasks for word in (task.name, *task.labels, *(f"{field}:" for field in task.fields))]
    words = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *asked, *vocabulary()]))}
    model = next(model for model in FAMILIES if model.name == name)
    build(replace(model, fields={**model.fields, "vocab_size": len(words), **FIELDS[name]}), folder)
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", words["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
