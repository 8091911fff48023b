"""Templates for decoders: the loss is on the answers only, or on all of a plain text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from edgempi.errors import UserError
from edgempi.finetune.data.examples import ASSISTANT, USER, Chat, Completion, Example, Message, Text
from edgempi.finetune.data.samples import IGNORED, Encoded, Place
from edgempi.finetune.data.templates import unfit

Span = tuple[int, int]


class _RefusedError(Exception):
    """What a chat template says against some messages."""


@dataclass(frozen=True)
class Answers:
    """Prompts and chats, of which only the answers are learned.

    Every message of the assistant is learned exactly once, after the very prompt that the chat template would give
    for it. Where a template shows earlier turns otherwise than when they were answered (or not at all), a chat gives
    several rows.

    What is too long loses its beginning, but for the token that begins every text. An answer is never cut: one that
    does not fit whole, with a token before it, is left out, and counted. So is a chat that the template refuses.

    Attributes:
        max_length: tokens of a row.
        chat_template: used in place of the tokenizer's own, if given.
        prompt_as_chat: a plain prompt becomes a message of the user where there is a chat template, as in inference.
    """

    max_length: int = 512
    chat_template: str | None = None
    prompt_as_chat: bool = True
    name: ClassVar[str] = "answers"

    def encode(self, example: Example, tokenizer: Any, place: Place) -> list[Encoded]:
        """A row, or one for each answer that cannot share it; none where no answer fits."""
        match example:
            case Completion(prompt, completion):
                if not (self.prompt_as_chat and self._template(tokenizer)):
                    ids, stops = _join(tokenizer, [prompt, completion], special=True)
                    ids += _end(tokenizer, ids)
                    return self._row(ids, [(stops[0], len(ids))], tokenizer, place)
                chat = Chat((Message(USER, prompt), Message(ASSISTANT, completion)))
            case Chat():
                chat = example
            case _:
                raise unfit(self.name, example, place, "chats, and prompts with completions")
        if not self._template(tokenizer):
            raise UserError(
                place.where, value="the tokenizer has no chat template", rule="messages are written by one",
                remedy="Use an instruct model, give chat_template, or bring the data as prompt and completion",
            )  # fmt: skip
        rows: list[Encoded] = []
        left = [i for i, message in enumerate(chat.messages) if message.is_answer]
        while left:
            try:
                texts, answers, left = self._pieces(chat, left, tokenizer, place)
            except _RefusedError as error:
                place.note(f"left out: the chat template cannot write it ({error})")
                return []
            ids, stops = _join(tokenizer, texts, special=False)
            spans = [(stops[i - 1] if i else 0, stops[i]) for i in answers]
            rows[:0] = self._row(ids[: spans[-1][1]], spans, tokenizer, place)
        return rows

    def _template(self, tokenizer: Any) -> str | None:
        return self.chat_template or getattr(tokenizer, "chat_template", None)

    def _pieces(
        self, chat: Chat, left: list[int], tokenizer: Any, place: Place
    ) -> tuple[list[str], list[int], list[int]]:
        """A chat up to the last answer of `left`, cut where answers begin and end.

        Returns:
            The pieces, which of them are answers, and the messages that have to be learned in another row.
        """
        whole = self._written(chat, left[-1] + 1, False, tokenizer)
        texts: list[str] = []
        answers: list[int] = []
        other, done = [], 0
        for index in left:
            asked = self._written(chat, index, True, tokenizer)
            told = self._written(chat, index + 1, False, tokenizer)
            if not (whole.startswith(told) and told.startswith(asked) and done <= len(asked) < len(told)):
                other.append(index)
                continue
            texts += [whole[done : len(asked)], whole[len(asked) : len(told)]]
            answers.append(len(texts) - 1)
            done = len(told)
        if left[-1] in other:
            raise UserError(
                place.where, value="an answer that does not continue its own prompt",
                rule="the chat template writes a prompt, and the same prompt with its answer",
                remedy="Give another chat_template, or bring the data as prompt and completion",
            )  # fmt: skip
        return texts, answers, other

    def _written(self, chat: Chat, count: int, ask: bool, tokenizer: Any) -> str:
        """The first messages of a chat as the template writes them; `ask` opens the assistant's turn."""
        messages = [
            {"role": message.role, "content": message.content, **(json.loads(message.more) if message.more else {})}
            for message in chat.messages[:count]
        ]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tools=json.loads(chat.tools) if chat.tools else None, chat_template=self.chat_template,
                    tokenize=False, add_generation_prompt=ask,
                )
            )  # fmt: skip
        except Exception as error:  # a template may raise anything
            words = str(error).strip()
            raise _RefusedError(words.splitlines()[0][:200] if words else type(error).__name__) from error

    def _row(self, ids: list[int], answers: list[Span], tokenizer: Any, place: Place) -> list[Encoded]:
        """The row of some ids up to the last answer that fits, cut from the left, with labels on those kept whole."""
        kept_first = 1 if ids and ids[0] == tokenizer.bos_token_id else 0
        count, excess = len(answers), 0
        while answers:
            ids = ids[: answers[-1][1]]
            excess = max(0, len(ids) - self.max_length)
            # A row's first token is predicted from nothing, so that an answer needs one before it.
            if not excess or answers[-1][0] > excess:
                break
            answers = answers[:-1]
        fits = [span for span in answers if not excess or span[0] > excess]
        if len(fits) < count:
            place.note(f"an answer left out: it does not fit into {self.max_length} tokens")
        if not fits:
            return []
        if excess:
            place.note(f"cut from the left to {self.max_length} tokens")
        labels = [IGNORED] * len(ids)
        for start, stop in fits:
            end = _stop(ids, start, stop, tokenizer.eos_token_id)
            labels[start:end] = ids[start:end]
        cut = slice(kept_first, kept_first + excess)
        del ids[cut], labels[cut]
        return [Encoded(labels, dec_ids=ids)]


@dataclass(frozen=True)
class Blocks:
    """Plain texts, each ended and cut into consecutive rows of at most `max_length` tokens; every token is learned."""

    max_length: int = 512
    name: ClassVar[str] = "blocks"

    def encode(self, example: Example, tokenizer: Any, place: Place) -> list[Encoded]:
        """The blocks of a text; a last one of a single token is left out, since there is nothing to learn in it."""
        if not isinstance(example, Text):
            raise unfit(self.name, example, place, "plain texts")
        ids = _open(tokenizer, example.text)
        ids += _end(tokenizer, ids)
        blocks = [ids[i : i + self.max_length] for i in range(0, len(ids), self.max_length)]
        if len(blocks) > 1:
            place.note(f"cut into blocks of {self.max_length} tokens")
        if len(blocks[-1]) < 2:
            place.note("a last token left out")
        return [Encoded(block, dec_ids=block) for block in blocks if len(block) > 1]


def _join(tokenizer: Any, texts: list[str], special: bool) -> tuple[list[int], list[int]]:
    """The ids of consecutive texts, and where each of them ends.

    What comes first keeps the ids that it has alone, since that is what inference will send. What follows has the ids
    it would have after it (a word keeps its space), unless both would melt into one token.
    """
    ids: list[int] = []
    stops: list[int] = []
    written = ""
    for text in texts:
        written += text
        whole = _open(tokenizer, written) if special else _plain(tokenizer, written)
        if whole[: len(ids)] == ids:
            ids = whole
        else:
            ids = ids + _plain(tokenizer, text)
        stops.append(len(ids))
    return ids, stops


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _open(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text with what begins it, and without what ends it."""
    ids, bare = list(tokenizer(text, verbose=False)["input_ids"]), _plain(tokenizer, text)
    for start in range(len(ids) - len(bare) + 1):
        if ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids


def _end(tokenizer: Any, ids: list[int]) -> list[int]:
    """What ends a text, if its tokenizer has such a token and it does not stand there already."""
    end = tokenizer.eos_token_id
    return [] if end is None or ids[-1:] == [end] else [end]


def _stop(ids: list[int], start: int, stop: int, end: int | None) -> int:
    """Where learning stops in an answer: behind the first token that ends generation, if there is one."""
    return next((i + 1 for i in range(start, stop) if ids[i] == end), stop)
