"""Small tokenizers of whole words, joined as T5, BERT and a chat model join theirs."""

from __future__ import annotations

from typing import Any

from edgempi.finetune.data.generated import vocabulary

SPECIAL = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "<s>"]
WORDS = [
    *vocabulary(), "mrpc", "stsb", "sentence1:", "sentence2:", "equivalent", "not_equivalent", "3.8", "one", "two",
    "three", "four", "user:", "bot:", "yes", "no",
]  # fmt: skip
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} user: {{ m.content }}"
    "{% elif m.role == 'assistant' %} bot: {{ m.content }} {{ eos_token }} .{% else %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} bot:{% endif %}"
)
"""Writes a full stop behind the token that ends an answer, as templates write a line break."""
LAST_TURN_ONLY = "{% for m in messages[-2:] %} {{ m.role[:4] }}: {{ m.content }}{% endfor %}"


def words(kind: str) -> Any:
    """A tokenizer: t5 (text </s>), bert ([CLS] a [SEP] b [SEP]) or chat (<s> text, with a chat template)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair, chat = {
        "t5": ("$A </s>", "$A </s> $B </s>", None),
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", None),
        "chat": ("<s> $A", "<s> $A $B", CHAT),
    }[kind]
    marks = [(mark, ids[mark]) for mark in SPECIAL]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", chat_template=chat, eos_token="</s>",
        bos_token="<s>" if kind == "chat" else None, model_input_names=["input_ids", "token_type_ids"],
    )  # fmt: skip


def written(tokenizer: Any, ids: Any) -> str:
    """Ids as words."""
    return " ".join(tokenizer.convert_ids_to_tokens([int(i) for i in ids]))
