"""Chats as OpenAI, ShareGPT and others write them: read alike, skipped with a count, or refused with the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Chat, Loaded, Message
from edgempi.finetune.data.jsonl import read_jsonl

ASKED = {"role": "user", "content": "hi"}
TOLD = {"role": "assistant", "content": "hello"}
PLAIN = (Message("user", "hi"), Message("assistant", "hello"))


def _read(tmp_path: Path, *rows: object) -> Loaded:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_jsonl(path)


def _messages(tmp_path: Path, *turns: object, **more: object) -> Chat:
    (chat,) = _read(tmp_path, {"messages": turns, **more}).examples
    assert isinstance(chat, Chat)
    return chat


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, TOLD]},
        {"messages": [{**ASKED, "content": [{"type": "text", "text": "hi"}]}, {**TOLD, "content": ["hello"]}]},
        {"messages": [ASKED, {**TOLD, "weight": 1}], "id": 3},
        {"messages": [{**ASKED, "name": None}, {**TOLD, "tool_calls": None, "weight": None}]},
        {"messages": [ASKED, TOLD], "tools": None},
        {"messages": [ASKED, TOLD], "tools": " "},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "Assistant", "value": "hello"}], "system": ""},
        {"conversations": [ASKED, TOLD]},
        {"prompt": [ASKED], "completion": [TOLD]},
    ],
)
def test_one_chat_however_it_is_written(tmp_path: Path, row: dict[str, Any]) -> None:
    learnt = tuple(Message(m.role, m.content, learned="prompt" not in row or m.role != "user") for m in PLAIN)
    assert _read(tmp_path, row).examples == (Chat(learnt),)


def test_a_system_s_message_stands_first(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert _read(tmp_path, row).examples == (Chat((Message("system", "Be kind."), *PLAIN)),)
    row["conversations"].insert(0, {"from": "system", "value": "Be brief."})  # type: ignore[attr-defined]
    assert _read(tmp_path, row).examples == (Chat((Message("system", "Be brief."), *PLAIN)),)


def test_parts_of_text_stand_on_a_line_each(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]
    chat = _messages(tmp_path, {"role": "user", "content": parts}, TOLD)
    assert chat.messages[0].content == "one\ntwo"


def test_calls_have_arguments_that_are_objects(tmp_path: Path) -> None:
    def call(arguments: object) -> dict[str, object]:
        return {"id": "1", "type": "function", "function": {"name": "lamp", "arguments": arguments}}

    def told(arguments: object) -> str:
        turn = {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}
        chat = _messages(tmp_path, ASKED, turn, {"role": "tool", "tool_call_id": "1", "content": "done"})
        assert (chat.messages[1].content, chat.messages[2].more) == ("", '{"tool_call_id":"1"}')
        return chat.messages[1].more

    assert told('{"on": true}') == told({"on": True})
    assert json.loads(told(""))["tool_calls"] == [call({})]
    for odd in ("not json", "[1]", '{"on": "\\ud800"}', "[" * 100_000):
        assert json.loads(told(odd))["tool_calls"] == [call(odd)]


def test_tools_may_be_written_as_text(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    assert _messages(tmp_path, ASKED, TOLD, tools=json.dumps(tools)) == _messages(tmp_path, ASKED, TOLD, tools=tools)
    assert _messages(tmp_path, ASKED, TOLD, tools=[]).tools == ""


def test_answers_of_no_weight_are_read_and_not_learned(tmp_path: Path) -> None:
    chat = _messages(tmp_path, ASKED, {**TOLD, "weight": 0}, ASKED, TOLD)
    assert [message.learned for message in chat.messages] == [True, False, True, True]
    (asked,) = _read(tmp_path, {"prompt": [ASKED, TOLD, ASKED], "completion": [TOLD]}).examples
    assert isinstance(asked, Chat)
    assert [message.is_answer for message in asked.messages] == [False, False, False, True]
    with pytest.raises(UserError, match="no message of the assistant"):
        _messages(tmp_path, ASKED, {**TOLD, "weight": 0})


def test_what_the_assistant_says_unasked_is_left_out(tmp_path: Path) -> None:
    loaded = _read(
        tmp_path,
        {"messages": [TOLD, ASKED, TOLD]},
        {"messages": [{"role": "system", "content": "Be kind."}, TOLD, ASKED, TOLD]},
        {"messages": [TOLD]},
        {"messages": [{"role": "system", "content": "Be kind."}]},
        {"messages": []},
    )
    assert loaded.examples == (Chat(PLAIN), Chat((Message("system", "Be kind."), *PLAIN)))
    assert loaded.tally.as_dict() == {
        "begins with the assistant: what it says before it is asked is left out": {
            "rows": 3, "first_lines": [1, 2, 3]
        },
        "no message of the assistant": {"rows": 3, "first_lines": [3, 4, 5]},
    }  # fmt: skip


def test_rows_of_something_else_than_text_are_counted(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    loaded = _read(
        tmp_path,
        {"messages": [ASKED, TOLD]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it"}, picture]}, TOLD]},
        {"messages": [ASKED, {"role": "assistant", "content": None}]},
        {"messages": [ASKED, {"role": "assistant"}]},
        {"messages": [ASKED, {"role": "narrator", "content": "later"}, TOLD]},
    )
    assert loaded.lines == (1, 5)
    assert loaded.tally.rows == {
        "a message has a part of kind image_url, and is not text alone": 1,
        "a message without content": 2,
        "a message of role narrator, which few chat templates know (kept)": 1,
    }
    with pytest.raises(UserError, match=r"1 row: a function_call of ShareGPT; tool_calls in messages are read"):
        _read(tmp_path, {"conversations": [{"from": "human", "value": "hi"}, {"from": "function_call", "value": "{}"}]})


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "line 1: messages: str; it is a list"),
        ([{"content": "hi"}], "message 1: .*an object with a role and a content"),
        ([{"role": 3, "content": "hi"}], "message 1: .*an object with a role and a content"),
        ([ASKED, "bye"], "message 2: .bye"),
        ([{"role": "user", "content": 3}], "message 1: content: int; it is a string, or a list of parts"),
        ([{"role": "user", "content": [3]}], "message 1: content: 3; a part is an object with a type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of text has a text"),
        ([ASKED, {**TOLD, "weight": 0.5}], "message 2: weight: 0.5; it is 0, where an answer is not learned, or 1"),
    ],
)
def test_bad_messages_are_named(tmp_path: Path, messages: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _read(tmp_path, {"messages": messages})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [ASKED, TOLD], "tools": "lamp"}, "line 1: tools: lamp; it is a list of tools"),
        ({"messages": [ASKED, TOLD], "tools": {"lamp": 1}}, "line 1: tools: dict; it is a list of tools"),
        ({"prompt": [ASKED], "completion": "hello"}, "line 1: completion: str; it is a list"),
        ({"conversations": [{"from": None, "value": "hi"}]}, "an object with a role and a content"),
        ({"instruction": ["hi"], "output": "hello"}, "line 1: instruction: list; it is a string"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _read(tmp_path, row)
