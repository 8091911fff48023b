"""Chats, prompts and texts from JSONL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Chat, Completion, Message, Text
from edgempi.finetune.data.jsonl import find_splits, read_jsonl


def _file(tmp_path: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _turn(role: str, content: str | None, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def test_chats_keep_tools_and_their_calls(tmp_path: Path) -> None:
    calls = [{"function": {"name": "light", "arguments": {"on": True}}}]
    turns = [_turn("user", "hi"), _turn("assistant", None, tool_calls=calls), _turn("tool", "done", name="light")]
    path = _file(tmp_path, {"messages": turns, "tools": [{"name": "light"}], "id": 7})
    (chat,) = read_jsonl(path).examples
    assert isinstance(chat, Chat)
    assert chat.messages[0] == Message("user", "hi")
    assert json.loads(chat.messages[1].more) == {"tool_calls": calls}
    assert chat.messages[2] == Message("tool", "done", '{"name":"light"}')
    assert chat.tools == '[{"name":"light"}]'


def test_prompts_and_texts(tmp_path: Path) -> None:
    path = _file(tmp_path, {"prompt": "a", "completion": " b"}, "", {"prompt": "c", "completion": " "})
    loaded = read_jsonl(path)
    assert loaded.examples == (Completion("a", " b"),)
    assert loaded.tally.as_dict() == {
        "blank line": {"rows": 1, "first_lines": [2]}, "completion is empty": {"rows": 1, "first_lines": [3]},
    }  # fmt: skip
    path.write_bytes(b'\xef\xbb\xbf{"text": "one \xe2\x80\xa8 line"}\r\n{"text": ""}\r\n')
    loaded = read_jsonl(path)
    assert loaded.examples == (Text("one \u2028 line"),)
    assert loaded.tally.rows == {"text is empty": 1}


def test_chats_without_an_answer_are_skipped(tmp_path: Path) -> None:
    path = _file(tmp_path, {"messages": [_turn("user", "hi")]}, {"messages": []})
    with pytest.raises(UserError, match=r"no usable row .2 rows: no message of the assistant"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "a"', "line 2: .*each line is one JSON object"),
        ('["text"]', "line 2: list; each line is one JSON object"),
        ("[" * 100_000, "line 2: .*each line is one JSON object"),
        ('{"text": NaN}', "line 2: NaN is no JSON"),
        ('{"text": "\\ud800"}', "line 2: half of a surrogate pair"),
        ({"text": 3}, "line 2: text: int; it is a string"),
        ({"txt": "a"}, "line 2: fields txt; rows of this file have text"),
        ({"prompt": "a", "completion": "b"}, "rows of this file have text"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_jsonl(_file(tmp_path, {"text": "fine"}, row))


def test_instructions_are_prompts(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Add. 1 and 2: 3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say bye.", "input": None, "output": "bye", "system": "Be short."},
        {"instruction": "Say nothing.", "output": None},
    )
    loaded = read_jsonl(path)
    spoken = Chat((Message("system", "Be short."), Message("user", "Say bye."), Message("assistant", "bye")))
    assert loaded.examples == (Completion("Add.\n1 and 2", "3"), Completion("Say hi.", "hi"), spoken)
    assert loaded.tally.as_dict() == {"completion is empty": {"rows": 1, "first_lines": [4]}}


def test_what_says_nothing_is_skipped(tmp_path: Path) -> None:
    loaded = read_jsonl(_file(tmp_path, {"text": "one"}, {"text": None}, {"text": "two"}))
    assert (loaded.examples, loaded.lines) == ((Text("one"), Text("two")), (1, 3))
    assert loaded.tally.rows == {"text is empty": 1}


def test_empty_files_and_unknown_fields(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable row"):
        read_jsonl(_file(tmp_path))
    known = "messages, or conversations, or prompt and completion, or instruction and output, or text"
    with pytest.raises(UserError, match=f"fields none; rows of this file have {known}"):
        read_jsonl(_file(tmp_path, {}))
    with pytest.raises(UserError, match="fields text; rows of this file have instruction and output"):
        read_jsonl(_file(tmp_path, {"instruction": "a", "output": "b"}, {"text": "a"}))


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train.jsonl"):
        find_splits(tmp_path)
    train, valid = _file(tmp_path, name="train.jsonl"), _file(tmp_path, name="valid.jsonl")
    assert find_splits(tmp_path) == {"train": train, "validation": valid}
    _file(tmp_path, name="validation.jsonl")
    with pytest.raises(UserError, match=r"validation.jsonl and valid.jsonl; one file holds the validation rows"):
        find_splits(tmp_path)
