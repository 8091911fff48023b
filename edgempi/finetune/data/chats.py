"""Chats as other tools write them, and the same chat for the same meaning.

    {"messages": [{"role", "content"}]}           OpenAI's, with tools, tool calls, parts of text and weights of answers
    {"conversations": [{"from", "value"}]}        ShareGPT's
    {"prompt": [messages], "completion": [...]}   a prompt and a completion in turns: no answer of the prompt is learned

A row that says something else than text, or leaves something unsaid, raises `LeftOutError`: it is counted and skipped.
One that is malformed ends the reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgempi.finetune.data.examples import ASSISTANT, SYSTEM, USER, Chat, Message, wrong

Note = Callable[[str], None]
"""Counts what happened to a row."""

ROLES = frozenset((SYSTEM, "developer", USER, ASSISTANT, "tool", "function", "ipython"))
"""Those that chat templates know, if not each of them all."""
BEFORE = frozenset((SYSTEM, "developer"))
"""What may stand before the first question."""
SPEAKERS = {
    "human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT, "observation": "tool",
}  # fmt: skip
"""ShareGPT's names of roles."""
TEXTS = frozenset(("text", "input_text", "output_text"))
"""The kinds of a message's parts that are text."""
OWN = frozenset(("role", "from", "content", "value", "weight"))
"""The fields of a message that have a place of their own; whatever else it has is for the template."""


class LeftOutError(Exception):
    """Why a row is skipped, though it is not malformed."""


def chat_of(row: Mapping[str, Any], field: str, where: str, note: Note) -> Chat:
    """The chat in `messages` or `conversations` of a row.

    Args:
        row: of a JSONL file.
        field: which of the two.
        where: for messages to the user.
        note: is told what happened to the row.

    Raises:
        LeftOutError: there is something in it that is no text, or a message says nothing.
        UserError: it is malformed.
    """
    messages = _turns(row[field], f"{where}: {field}", where)
    if field == "conversations" and (told := row.get(SYSTEM)) and all(m.role not in BEFORE for m in messages):
        messages.insert(0, Message(SYSTEM, _content(told, False, f"{where}: {SYSTEM}")))
    return _chat(messages, row, where, note)


def chat_of_turns(row: Mapping[str, Any], where: str, note: Note) -> Chat:
    """The chat of a prompt and a completion that are lists of messages; raises as `chat_of`."""
    asked, told = (_turns(row[field], f"{where}: {field}", where) for field in ("prompt", "completion"))
    return _chat([*(replace(message, learned=False) for message in asked), *told], row, where, note)


def canonical(value: object) -> str:
    """JSON in one way of writing it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _chat(messages: Sequence[Message], row: Mapping[str, Any], where: str, note: Note) -> Chat:
    for role in sorted({message.role for message in messages} - ROLES):
        note(f"a message of role {role}, which few chat templates know (kept)")
    first = next((i for i, m in enumerate(messages) if m.role not in BEFORE | {ASSISTANT}), len(messages))
    begun = tuple(message for i, message in enumerate(messages) if i >= first or message.role != ASSISTANT)
    if len(begun) < len(messages):
        note("begins with the assistant: what it says before it is asked is left out")
    return Chat(begun, _tools(row.get("tools"), where))


def _turns(turns: object, spot: str, where: str) -> list[Message]:
    if not isinstance(turns, list):
        raise wrong(spot, type(turns).__name__, "it is a list")
    return [_message(turn, f"{where}: message {number}") for number, turn in enumerate(turns, 1)]


def _message(turn: object, spot: str) -> Message:
    role = _role(turn)
    if role is None or not isinstance(turn, dict):
        raise wrong(spot, json.dumps(turn)[:80], "a message is an object with a role and a content")
    if role == "function_call":
        raise LeftOutError("a function_call of ShareGPT; tool_calls in messages are read")
    calls = turn.get("tool_calls") or turn.get("function_call")
    content = _content(turn.get("content", turn.get("value")), bool(calls), spot)
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise wrong(f"{spot}: weight", weight, "it is 0, where an answer is not learned, or 1")
    more = {name: value for name, value in turn.items() if name not in OWN and value is not None}
    if isinstance(more.get("tool_calls"), list):
        more["tool_calls"] = [_call(call) for call in more["tool_calls"]]
    return Message(role, content, canonical(more) if more else "", learned=weight != 0)


def _role(turn: object) -> str | None:
    """Who speaks, by OpenAI's name; None where it is not said."""
    if not isinstance(turn, dict):
        return None
    role, speaker = turn.get("role"), turn.get("from")
    if isinstance(role, str):
        return role
    return SPEAKERS.get(speaker.lower(), speaker.lower()) if isinstance(speaker, str) else None


def _content(value: object, calls: bool, spot: str) -> str:
    """What is said; parts of text stand on a line each."""
    if value is None:
        if calls:
            return ""
        raise LeftOutError("a message without content")
    if isinstance(value, list):
        return "\n".join(_parts(value, spot))
    if not isinstance(value, str):
        raise wrong(f"{spot}: content", type(value).__name__, "it is a string, or a list of parts")
    return value


def _parts(parts: Iterable[object], spot: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise wrong(f"{spot}: content", json.dumps(part)[:80], "a part is an object with a type")
        if kind not in TEXTS:
            raise LeftOutError(f"a message has a part of kind {kind}, and is not text alone")
        if not isinstance(part.get("text"), str):
            raise wrong(f"{spot}: content", json.dumps(part)[:80], "a part of text has a text")
        yield part["text"]


def _call(call: Any) -> Any:
    """A tool's call with its arguments as an object: OpenAI writes them as text, which templates would quote again."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = _parsed(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _tools(tools: object, where: str) -> str:
    """The tools on offer as canonical JSON, which may have been written as text; empty where there are none."""
    if isinstance(tools, str):
        try:
            tools = _parsed(tools) if tools.strip() else None
        except (ValueError, RecursionError) as error:
            raise wrong(f"{where}: tools", str(tools)[:80], "it is a list of tools, or the JSON of one") from error
    if not tools:
        return ""
    if not isinstance(tools, list):
        raise wrong(f"{where}: tools", type(tools).__name__, "it is a list of tools, or the JSON of one")
    return canonical(tools)


def _parsed(text: str) -> Any:
    """JSON within JSON; raises `ValueError` where it is none, or holds half a character, or `RecursionError`."""
    value = json.loads(text)
    canonical(value).encode("utf-8")
    return value
