"""Templates for labelled texts: a class or score from an encoder's head, or the label's name as text.

The text-to-text form is that of T5 (arXiv 1910.10683, appendix D): "mrpc sentence1: ... sentence2: ..." is answered
with "equivalent", and a similarity is rounded to the nearest 0.2 and written as a word such as "3.8".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Completion, Example, Labelled
from edgempi.finetune.data.samples import IGNORED, Encoded, Place
from edgempi.finetune.data.task import HIDDEN, Task

STEPS_PER_POINT = 5
"""A score is written in steps of 0.2."""


@dataclass(frozen=True)
class Classify:
    """Texts for a head that names a class or a score.

    An encoder reads a pair as its tokenizer joins pairs; where it is too long, the longer text is cut at its end,
    token by token (longest_first). A decoder reads the texts on a line each, cut at the end of the last.

    Attributes:
        max_length: tokens of a row, special ones included.
        stack: enc or dec, whichever the model has.
    """

    max_length: int = 128
    stack: str = "enc"
    name: ClassVar[str] = "classify"

    def encode(self, example: Example, tokenizer: Any, place: Place) -> list[Encoded]:
        """One row; a hidden label is -1."""
        if not isinstance(example, Labelled):
            raise unfit(self.name, example, place, "labelled texts")
        texts = example.texts if self.stack == "enc" else ("\n".join(example.texts),)
        ids, types = _cut(tokenizer, texts, self.max_length, "longest_first", place)
        labels = HIDDEN if example.label is None else example.label
        if self.stack == "dec":
            return [Encoded(labels, dec_ids=ids)]
        return [Encoded(labels, enc_ids=ids, types=types)]


@dataclass(frozen=True)
class TextToText:
    """Labelled texts, or prompts with completions, for an encoder-decoder: text in, text out.

    A source that is too long is cut at its end; a target that is too long leaves its row out, which is counted.

    Attributes:
        task: gives the words of the prompt and of the labels; None for prompts with completions.
        decoder_start: the id that the decoder begins with (`ModelSpec.start_token`).
        max_length, max_target_length: tokens of source and target, special ones included.
    """

    task: Task | None
    decoder_start: int
    max_length: int = 128
    max_target_length: int = 16
    name: ClassVar[str] = "text_to_text"

    def encode(self, example: Example, tokenizer: Any, place: Place) -> list[Encoded]:
        """One row, or none where its target is too long; a hidden label is learned nowhere."""
        source, target = self._texts(example, place)
        ids, _ = _cut(tokenizer, (source,), self.max_length, True, place)
        labels = list(tokenizer(text_target=target, verbose=False)["input_ids"])
        if len(labels) > self.max_target_length:
            place.note(f"left out: the target is longer than {self.max_target_length} tokens")
            return []
        written = [self.decoder_start, *labels[:-1]]
        hidden = isinstance(example, Labelled) and example.label is None
        return [Encoded([IGNORED] * len(labels) if hidden else labels, enc_ids=ids, dec_ids=written)]

    def read_answer(self, text: str) -> int | float:
        """The class number or score that a written answer names; -1 where it names none, as in T5's own evaluation."""
        assert self.task is not None
        word = text.strip()
        if not self.task.is_score:
            return self.task.labels.index(word) if word in self.task.labels else HIDDEN
        try:
            score = float(word)
        except ValueError:
            return float(HIDDEN)
        return score if self.task.lowest <= score <= self.task.highest else float(HIDDEN)

    def _texts(self, example: Example, place: Place) -> tuple[str, str]:
        match example:
            case Labelled(texts, label) if self.task is not None:
                named = " ".join(f"{name}: {text}" for name, text in zip(self.task.fields, texts, strict=True))
                return f"{self.task.name} {named}", label_text(self.task, label)
            case Completion(prompt, completion) if self.task is None:
                return prompt, completion
        raise unfit(self.name, example, place, "prompts with completions" if self.task is None else "labelled texts")


def label_text(task: Task, label: int | float | None) -> str:
    """A label as text: the name of a class, a score in steps of 0.2 (halves to the even step); empty if hidden."""
    if label is None:
        return ""
    if task.is_score:
        return f"{round(label * STEPS_PER_POINT) / STEPS_PER_POINT:.1f}"
    return task.labels[int(label)]


def unfit(template: str, example: Example, place: Place, wanted: str) -> UserError:
    """What to raise for an example that a template is not made for."""
    return UserError(
        place.where, value=f"a row of kind {type(example).__name__}", rule=f"the template {template} is for {wanted}",
        remedy="Choose the template that fits the data",
    )  # fmt: skip


def _cut(
    tokenizer: Any, texts: tuple[str, ...], max_length: int, truncation: str | bool, place: Place
) -> tuple[list[int], list[int] | None]:
    """Ids and token types of a text or pair, cut to `max_length` if need be, which is noted.

    Raises:
        UserError: so few tokens have no room for one of each text beside those that the tokenizer adds.
    """
    found = tokenizer(*texts, verbose=False)
    if len(found["input_ids"]) > max_length:
        added = tokenizer.num_special_tokens_to_add(pair=len(texts) == 2)
        if max_length < added + len(texts):
            raise UserError(
                "finetune_data.max_tokens", value=max_length,
                rule=f"beside the {added} that the tokenizer adds, {'each' if texts[1:] else 'the'} text needs one",
                remedy=f"Set it to {added + len(texts)} or more; 128 is usual",
            )  # fmt: skip
        place.note(f"cut to {max_length} tokens")
        found = tokenizer(*texts, truncation=truncation, max_length=max_length, verbose=False)
    types = found.get("token_type_ids")
    return list(found["input_ids"]), None if types is None else list(types)
