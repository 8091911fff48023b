"""Rows of JSONL files: chats, prompts with their completions, or plain text; one object in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Chat, Completion, Example, Loaded, Message, Tally, Text, gather, missing
from edgempi.finetune.data.lines import text_lines
from edgempi.finetune.data.tables import rows_of

KINDS = {"messages": ("messages",), "completion": ("prompt", "completion"), "text": ("text",)}
"""The fields by which a kind of row is known."""
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


def find_splits(folder: Path) -> dict[str, Path]:
    """The files train.jsonl, validation.jsonl (valid, dev) and test.jsonl of a folder, those that are there.

    Raises:
        UserError: there is no training file, or a split has two.
    """
    found: dict[str, Path] = {}
    for split, stems in SPLIT_NAMES.items():
        paths = [path for stem in stems if (path := Path(folder) / f"{stem}.jsonl").is_file()]
        if len(paths) > 1:
            raise UserError(
                f"data folder {folder}", value=" and ".join(path.name for path in paths),
                rule=f"one file holds the {split} rows", remedy="Remove or rename one of them",
            )  # fmt: skip
        if paths:
            found[split] = paths[0]
    if "train" not in found:
        raise UserError(
            f"data folder {folder}", value="no train.jsonl", rule="it holds train.jsonl (and validation.jsonl)",
            remedy="Rename the file, or point to it directly",
        )  # fmt: skip
    return found


def read_jsonl(path: Path) -> Loaded:
    """The rows of a JSONL file, of whichever kind the first one is.

    `{"messages": [{"role", "content"}, ...]}` (and "tools"), `{"prompt", "completion"}` or `{"text"}`; other fields
    of a row are left aside, those of a message are kept. Rows without an answer or text are counted and skipped.

    Raises:
        UserError: the file cannot be read, a line is no JSON object, or its fields are of another kind or type.
    """
    tally = Tally()
    return gather(str(path), _examples(path, tally), tally)


def read_named(path: Path, prompt: str | None, answer: str) -> Loaded:
    """Prompts and completions, or plain texts (no prompt), from named columns of a .csv, .tsv or .parquet file.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    tally, columns = Tally(), [*([prompt] if prompt else []), answer]

    def examples() -> Iterator[tuple[int, Example]]:
        for line, row in rows_of(path, columns, tally):
            if empty := missing(row, columns):
                tally.note(f"{empty} is empty", line)
            elif prompt:
                yield line, Completion(str(row[prompt]), str(row[answer]))
            else:
                yield line, Text(str(row[answer]))

    return gather(str(path), examples(), tally)


def _examples(path: Path, tally: Tally) -> Iterator[tuple[int, Example]]:
    kind: str | None = None
    for number, line in text_lines(path):
        if not line.strip():
            tally.note("blank line", number)
            continue
        where = f"{path}, line {number}"
        row = _object(line, where)
        own = next((name for name, fields in KINDS.items() if all(field in row for field in fields)), None)
        kind = kind or own
        if own is None or own != kind:
            wanted = " and ".join(KINDS[kind]) if kind else "messages, or prompt and completion, or text"
            raise UserError(
                where, value=f"fields {', '.join(row) or 'none'}"[:200], rule=f"rows of this file have {wanted}",
                remedy="Give all rows of a file the same fields",
            )  # fmt: skip
        example = _chat(row, where) if kind == "messages" else _plain(row, KINDS[kind], where)
        reason = _useless(example)
        if reason is None:
            yield number, example
        else:
            tally.note(reason, number)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_no_number)
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            where, value="half of a surrogate pair", rule="text is Unicode", remedy="Write the character whole"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            where, value=f"{error} in {line[:60]!r}", rule="each line is one JSON object",
            remedy="Correct the line; a file that is one JSON array has to be cut into lines",
        ) from error  # fmt: skip
    if not isinstance(row, dict):
        raise _wrong(where, type(row).__name__, "each line is one JSON object")
    return row


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _plain(row: dict[str, Any], fields: tuple[str, ...], where: str) -> Example:
    for name in fields:
        if not isinstance(row[name], str):
            raise _wrong(f"{where}: {name}", type(row[name]).__name__, "it is a string")
    values = [row[name] for name in fields]
    return Text(*values) if len(values) == 1 else Completion(*values)


def _chat(row: dict[str, Any], where: str) -> Chat:
    turns = row["messages"]
    if not isinstance(turns, list):
        raise _wrong(f"{where}: messages", type(turns).__name__, "it is a list")
    messages = []
    for place, turn in enumerate(turns):
        spot = f"{where}: message {place + 1}"
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise _wrong(spot, json.dumps(turn)[:80], "a message is an object with a role and a content")
        content = turn.get("content")
        if content is None and "tool_calls" in turn:
            content = ""
        if not isinstance(content, str):
            raise _wrong(f"{spot}: content", type(content).__name__, "it is a string")
        more = {name: value for name, value in turn.items() if name not in ("role", "content")}
        messages.append(Message(turn["role"], content, _canonical(more) if more else ""))
    return Chat(tuple(messages), _canonical(row["tools"]) if row.get("tools") else "")


def _useless(example: Example) -> str | None:
    """Why nothing can be learned from a row, if so."""
    match example:
        case Chat(messages):
            answers = [m for m in messages if m.role == "assistant" and (m.content.strip() or m.more)]
            return None if answers else "no message of the assistant"
        case Completion(_, completion):
            return None if completion.strip() else "completion is empty"
        case Text(text):
            return None if text.strip() else "text is empty"
    return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _wrong(where: str, value: str, rule: str) -> UserError:
    return UserError(where, value=value, rule=rule, remedy="Correct the row")
