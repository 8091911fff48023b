"""The tokenizer of the household model: a byte-level BPE that knows its commands and its JSON."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, USER, ASSISTANT = "<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
VOCABULARY_SIZE = 1536
CONTEXT_LENGTH = 256

# In the answer a key with its punctuation is one piece and so is a quoted word; in the command a word goes
# with the space before it. A digit stands alone, so that numbers can be copied digit by digit.
_PIECES = r"""[{,]"[a-z]+":|"[a-z ]+"|'[A-Za-z]+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s+"""

# Every command stands alone, so a conversation is cut down to its last user message and what follows.
# The space makes the first word the same token as it is inside a sentence.
CHAT_TEMPLATE = """\
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages[last.user:] -%}
{%- if message.role == 'user' -%}
{{- '<|user|> ' + message.content | trim -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>' + message.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary from texts; the same texts give the same vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BEGIN, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
