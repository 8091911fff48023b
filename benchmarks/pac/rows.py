"""What the experiments train on: a tokenizer of whole words, rows of one length, and a task to train backbones with.

Steps are timed on rows of exactly `LENGTH` tokens, as the published harness has them, so that no figure depends on how
long the rows of a task happen to be.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pac.published import LENGTH
from edgempi.finetune.data.generated import Made, made_rows, vocabulary

Pair = tuple[tuple[str, ...], bool]
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
PLAIN_WORDS = 500
"""Words without meaning, for rows that are only timed."""
LABELS = ("apart", "together")
TEXT, LABEL = "text", "label"
TARGET_LENGTH = 2
"""Tokens of a label written as text, its end included."""


def write_tokenizer(folder: Path, room: int) -> None:
    """Write a tokenizer beside a model.

    Args:
        folder: of the model.
        room: how many words the model knows.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = [*SPECIAL, *LABELS, "classify", f"{TEXT}:", *vocabulary(), *map(_plain, range(PLAIN_WORDS))]
    words = {word: number for number, word in enumerate(dict.fromkeys(known))}
    assert len(words) <= room
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", words["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def write_even_rows(path: Path, count: int, length: int = LENGTH) -> None:
    """Write labelled rows that are all of `length` tokens where a model writes its labels as text."""
    around = 3  # the task's word, the column's, and the end
    dice = random.Random(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([TEXT, LABEL])
        for number in range(count):
            words = [_plain(dice.randrange(PLAIN_WORDS)) for _ in range(length - around)]
            writer.writerow([" ".join(words), LABELS[number % 2]])


def even_words(path: Path, length: int = LENGTH) -> list[str]:
    """The words of a command line that train on these rows."""
    return [
        "finetune_data.source=table", f"finetune_data.path={path}",
        "finetune_data.task=classify", f"finetune_data.texts=[{TEXT}]", f"finetune_data.label={LABEL}",
        f"finetune_data.labels=[{','.join(LABELS)}]", f"finetune_data.max_tokens={length}",
        f"finetune_data.max_target_tokens={TARGET_LENGTH}",
    ]  # fmt: skip


def write_matching_task(path: Path, count: int, seed: int) -> None:
    """Write pairs of texts of all the generated tasks, and whether the two belong together.

    A backbone that has learned this knows words and how texts are compared; what a task asks is still to be learned.
    """
    quarter = count // 4
    pairs = [
        *_judged(made_rows("mrpc", quarter, seed), lambda row: row.label == "1"),
        *_judged(made_rows("stsb", quarter, seed), lambda row: float(row.label) >= 2.5),
        *_judged(made_rows("qnli", quarter, seed), lambda row: row.label == "entailment"),
        *_alike(made_rows("sst2", 2 * quarter, seed)),
    ]
    random.Random(seed).shuffle(pairs)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", LABEL])
        writer.writerows([*texts, LABELS[belongs]] for texts, belongs in pairs)


def matching_words(path: Path) -> list[str]:
    """The words of a command line that train on these pairs."""
    return [
        "finetune_data.source=table", f"finetune_data.path={path}",
        "finetune_data.task=match", "finetune_data.texts=[first,second]", f"finetune_data.label={LABEL}",
        f"finetune_data.labels=[{','.join(LABELS)}]", "finetune_data.max_tokens=64",
    ]  # fmt: skip


def _judged(rows: Sequence[Made], belongs: Callable[[Made], bool]) -> list[Pair]:
    return [(row.texts, belongs(row)) for row in rows]


def _alike(rows: Sequence[Made]) -> list[Pair]:
    """Sentences two by two: whether they are of one mind."""
    halves = zip(rows[::2], rows[1::2], strict=False)
    return [((*a.texts, *b.texts), a.label == b.label) for a, b in halves]


def _plain(number: int) -> str:
    return f"w{number}"
