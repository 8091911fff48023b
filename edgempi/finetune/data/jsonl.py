"""Rows of JSONL files: chats, prompts with their completions, or plain text; one object in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from edgempi.errors import UserError
from edgempi.finetune.data.chats import LeftOutError, Note, chat_of, chat_of_turns
from edgempi.finetune.data.examples import (
    ASSISTANT,
    SYSTEM,
    USER,
    Chat,
    Completion,
    Example,
    Loaded,
    Message,
    Tally,
    Text,
    gather,
    missing,
    wrong,
)
from edgempi.finetune.data.lines import text_lines
from edgempi.finetune.data.tables import rows_of

KINDS = {
    "messages": ("messages",), "conversations": ("conversations",), "completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"), "text": ("text",),
}  # fmt: skip
"""The fields by which a kind of row is known; the first that fits counts."""
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

    `{"messages": [{"role", "content"}, ...]}` and other forms of chats (see `chats`), `{"prompt", "completion"}`,
    `{"instruction", "input", "output"}` (Alpaca's), or `{"text"}`; other fields of a row are left aside, those of a
    message are kept. Rows without an answer or text, or with something else than text, are counted and skipped.

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
            wanted = " and ".join(KINDS[kind]) if kind else ", or ".join(map(" and ".join, KINDS.values()))
            raise UserError(
                where, value=f"fields {', '.join(row) or 'none'}"[:200], rule=f"rows of this file have {wanted}",
                remedy="Give all rows of a file the same fields",
            )  # fmt: skip
        try:
            example = _example(own, row, where, partial(tally.note, line=number))
        except LeftOutError as error:
            tally.note(str(error), number)
            continue
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
        raise wrong(where, type(row).__name__, "each line is one JSON object")
    return row


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _example(kind: str, row: Mapping[str, Any], where: str, note: Note) -> Example:
    match kind:
        case "messages" | "conversations":
            return chat_of(row, kind, where, note)
        case "completion" if any(isinstance(row[field], list) for field in KINDS[kind]):
            return chat_of_turns(row, where, note)
        case "completion":
            return Completion(_said(row, "prompt", where), _said(row, "completion", where))
        case "instruction":
            asked = [text for field in ("instruction", "input") if (text := _said(row, field, where)).strip()]
            return _told(_said(row, SYSTEM, where), "\n".join(asked), _said(row, "output", where))
    return Text(_said(row, "text", where))


def _told(system: str, prompt: str, answer: str) -> Example:
    """A prompt with its completion; a chat where a system's message comes before them."""
    if not system.strip():
        return Completion(prompt, answer)
    return Chat((Message(SYSTEM, system), Message(USER, prompt), Message(ASSISTANT, answer)))


def _said(row: Mapping[str, Any], field: str, where: str) -> str:
    """A text; empty where there is none."""
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise wrong(f"{where}: {field}", type(value).__name__, "it is a string")
    return value or ""


def _useless(example: Example) -> str | None:
    """Why nothing can be learned from a row, if so."""
    match example:
        case Chat(messages):
            return None if any(message.is_answer for message in messages) else "no message of the assistant"
        case Completion(_, completion):
            return None if completion.strip() else "completion is empty"
        case Text(text):
            return None if text.strip() else "text is empty"
    return None
