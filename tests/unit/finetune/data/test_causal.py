"""Answers of decoders: what is learned, and what is cut."""

from __future__ import annotations

from typing import Any

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data.causal import Answers, Blocks
from edgempi.finetune.data.examples import Chat, Completion, Example, Labelled, Message, Tally, Text
from edgempi.finetune.data.samples import IGNORED, Encoded, Place, Template
from edgempi.models.source import locate, read_tokenizer
from unit.finetune.data.tokenizers_made import LAST_TURN_ONLY, words, written


def _encode(template: Template, tokenizer: Any, example: Example) -> tuple[list[Encoded], Tally]:
    tally = Tally()
    return template.encode(example, tokenizer, Place("rows, line 3", lambda reason: tally.note(reason, 3))), tally


def _learned(tokenizer: Any, row: Encoded) -> str:
    """The row as words, those that are learned in brackets."""
    assert isinstance(row.labels, list)
    assert row.dec_ids is not None
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.dec_ids, strict=True))
    names = tokenizer.convert_ids_to_tokens(row.dec_ids)
    return " ".join(n if label == IGNORED else f"({n})" for n, label in zip(names, row.labels, strict=True))


def _chat(*turns: str) -> Chat:
    return Chat(tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)))


def test_only_answers_are_learned_up_to_what_ends_them() -> None:
    chat = words("chat")
    (row,), _ = _encode(Answers(), chat, _chat("one", "yes", "two", "no no", "three"))
    assert _learned(chat, row) == "<s> user: one bot: (yes) (</s>) . user: two bot: (no) (no) (</s>) ."


def test_a_plain_prompt_is_asked_as_inference_asks_it() -> None:
    chat = words("chat")
    example = Completion("one two", "yes")
    (row,), _ = _encode(Answers(), chat, example)
    assert _learned(chat, row) == "<s> user: one two bot: (yes) (</s>) ."
    (row,), _ = _encode(Answers(prompt_as_chat=False), chat, example)
    assert _learned(chat, row) == "<s> one two (yes) (</s>)"
    (row,), _ = _encode(Answers(prompt_as_chat=False), chat, Completion("one", "two"))
    assert _learned(chat, row) == "<s> one (two) (</s>)"  # "onetwo" would be another word than inference sends
    t5 = words("t5")  # no chat template; the prompt loses the token that would end it
    (row,), _ = _encode(Answers(), t5, example)
    assert _learned(t5, row) == "one two (yes) (</s>)"


def test_the_prompt_is_cut_from_the_left_and_an_answer_never() -> None:
    chat = words("chat")
    example = Completion("one two three four", "yes no")
    rows, tally = _encode(Answers(max_length=6, prompt_as_chat=False), chat, example)
    assert _learned(chat, rows[0]) == "<s> three four (yes) (no) (</s>)"
    assert tally.rows == {"cut from the left to 6 tokens": 1}
    rows, _ = _encode(Answers(max_length=4, prompt_as_chat=False), chat, example)
    assert _learned(chat, rows[0]) == "<s> (yes) (no) (</s>)"
    rows, tally = _encode(Answers(max_length=3, prompt_as_chat=False), chat, example)
    assert (rows, tally.rows) == ([], {"an answer left out: it does not fit into 3 tokens": 1})


def test_an_answer_has_a_token_before_it() -> None:
    t5 = words("t5")  # no token begins its texts
    example = Completion("one two three four", "yes no")
    rows, tally = _encode(Answers(max_length=4), t5, example)
    assert _learned(t5, rows[0]) == "four (yes) (no) (</s>)"
    # Alone in its row, its first token would be predicted from nothing.
    rows, tally = _encode(Answers(max_length=3), t5, example)
    assert (rows, tally.rows) == ([], {"an answer left out: it does not fit into 3 tokens": 1})
    for length in range(4, 8):
        (row,), _ = _encode(Answers(max_length=length), t5, example)
        assert isinstance(row.labels, list)
        assert (row.labels[0], sum(label != IGNORED for label in row.labels)) == (IGNORED, 3)


def test_answers_before_one_that_is_too_long_are_learned() -> None:
    chat = words("chat")
    told = _chat("one", "yes", "two", "no no no no no no no no")
    (row,), tally = _encode(Answers(max_length=9), chat, told)
    assert _learned(chat, row) == "<s> user: one bot: (yes) (</s>) ."
    assert tally.rows == {"an answer left out: it does not fit into 9 tokens": 1}


def test_an_early_answer_that_is_cut_into_is_not_learned() -> None:
    chat = words("chat")
    (row,), tally = _encode(Answers(max_length=10), chat, _chat("one", "yes no", "two", "no"))
    assert _learned(chat, row) == "<s> no </s> . user: two bot: (no) (</s>) ."
    assert tally.rows == {
        "an answer left out: it does not fit into 10 tokens": 1, "cut from the left to 10 tokens": 1,
    }  # fmt: skip


def test_where_a_template_shows_the_last_turn_only_each_answer_has_its_row() -> None:
    chat = words("chat")
    template = "{% for m in messages[-1:] if add_generation_prompt %} user: {{ m.content }} bot:{% endfor %}"
    template += "{% for m in messages[-2:] if not add_generation_prompt %}{% if m.role == 'user' %} user: "
    template += "{{ m.content }} bot:{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    rows, _ = _encode(Answers(chat_template=template), chat, _chat("one", "yes", "two", "no"))
    assert [_learned(chat, row) for row in rows] == ["user: one bot: (yes) (</s>)", "user: two bot: (no) (</s>)"]
    with pytest.raises(UserError, match=r"line 3: an answer that does not continue its own prompt"):
        _encode(Answers(chat_template=LAST_TURN_ONLY), chat, _chat("one", "yes", "two", "no"))


def test_the_shipped_assistant_learns_what_it_will_be_asked() -> None:
    tokenizer = read_tokenizer(locate("assistant"))
    turns = ("turn on the lamp", '{"intent":"light_on"}', "lock the door", '{"intent":"door_lock"}')
    rows, tally = _encode(Answers(), tokenizer, _chat(*turns))
    assert len(rows) == 2
    assert not tally.rows
    for row, (asked, told) in zip(rows, (turns[:2], turns[2:]), strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
        )
        assert isinstance(row.labels, list)
        assert list(row.dec_ids or ())[: len(prompt)] == prompt
        assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert tokenizer.decode(row.labels[len(prompt) :]) == told + tokenizer.eos_token


def test_chats_need_a_chat_template_that_can_write_them() -> None:
    with pytest.raises(UserError, match=r"line 3: the tokenizer has no chat template"):
        _encode(Answers(), words("t5"), _chat("one", "yes"))
    with pytest.raises(UserError, match=r"a row of kind Labelled"):
        _encode(Answers(), words("chat"), Labelled(("a",), 1))
    rows, tally = _encode(Answers(), words("chat"), Chat((Message("tool", "one"), Message("assistant", "yes"))))
    assert (rows, tally.rows) == ([], {"left out: the chat template cannot write it (unknown role tool)": 1})


def test_an_answer_that_is_not_to_be_learned_is_read() -> None:
    chat = words("chat")
    turns = [Message("user", "one"), Message("assistant", "yes", learned=False), Message("user", "two")]
    (row,), tally = _encode(Answers(), chat, Chat((*turns, Message("assistant", "no"))))
    assert _learned(chat, row) == "<s> user: one bot: yes </s> . user: two bot: (no) (</s>) ."
    assert not tally.rows
    (row,), _ = _encode(Answers(), chat, Chat((*_chat("one", "yes", "two").messages, Message("assistant", " "))))
    assert _learned(chat, row) == "<s> user: one bot: (yes) (</s>) ."  # an empty answer teaches nothing


def test_texts_are_cut_into_blocks() -> None:
    chat = words("chat")
    rows, tally = _encode(Blocks(max_length=3), chat, Text("one two three four"))
    assert [written(chat, row.dec_ids) for row in rows] == ["<s> one two", "three four </s>"]
    assert all(row.labels == row.dec_ids for row in rows)
    assert tally.rows == {"cut into blocks of 3 tokens": 1}
    rows, tally = _encode(Blocks(max_length=5), chat, Text("one two three four"))
    assert ([written(chat, row.dec_ids) for row in rows], tally.rows["a last token left out"]) == (
        ["<s> one two three four"], 1,
    )  # fmt: skip
