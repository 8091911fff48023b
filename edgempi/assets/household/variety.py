"""Variety for training: other ways to say what a training template says.

The rewrites are generic (a polite opening, a synonym, a time added, a reason before the request, a
slip of the finger), so that the model learns which words carry the meaning and not whole sentences. A
rewrite that would show the model a frame of a held-out template is thrown away. The phrases are in
``variety.json``.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from edgempi.assets.household.commands import Template, may_train_on

_PHRASES: dict[str, list[Any]] = json.loads(
    resources.files(__package__).joinpath("variety.json").read_text(encoding="utf-8")
)
# Any phrase of a group may stand for any other of the same group.
_SYNONYMS: list[list[str]] = _PHRASES["synonyms"]
_VERBS = frozenset(_PHRASES["verbs"])
_DROPPABLE = frozenset(_PHRASES["droppable"])
# A door says where it is.
_PLACELESS = frozenset(("door_lock", "door_unlock"))


def vary(template: Template, siblings: Sequence[Template], rng: random.Random) -> Template:
    """Return a rewritten training template that means the same but for a time or a room it may add.

    ``siblings`` are training templates with the same intent and fields, to join a second clause from.
    """
    text = template.text
    if rng.random() < 0.15:
        text = _joined(text, rng.choice(siblings).text, rng)
    text = _with_synonyms(text, rng)
    text = _with_place(text, template.intent_name, rng)
    text = _with_opening(text, rng)
    text = _with_closing(text, rng)
    text = _with_slips(text, rng)
    return replace(template, text=text) if may_train_on(text) else template


def _joined(text: str, other: str, rng: random.Random) -> str:
    """Say two things that mean the same in one command."""
    first, second = rng.sample((text, other), 2)
    return first.rstrip("?") + rng.choice(_PHRASES["links"]) + second


def _with_synonyms(text: str, rng: random.Random) -> str:
    for group in _SYNONYMS:
        for phrase in group:
            pattern = rf"(?<![\w{{']){re.escape(phrase)}(?![\w}}'])"
            if rng.random() < 0.4 and re.search(pattern, text):
                text = re.sub(pattern, rng.choice(group), text, count=1)
                break
    return text


def _with_place(text: str, intent_name: str, rng: random.Random) -> str:
    if "{room}" in text or intent_name in _PLACELESS or rng.random() > 0.2:
        return text
    return _appended(text, "in the {room}")


def _with_opening(text: str, rng: random.Random) -> str:
    if _is_request(text) and rng.random() < 0.3:
        text = f"{rng.choice(_PHRASES['polite'])} {text}"
    if "{time}" not in text and rng.random() < 0.15:
        text = f"at {{time}} {text}"
    if rng.random() < 0.15:
        text = f"{rng.choice(_PHRASES['openings'])}{rng.choice((',', ''))} {text}"
    return text


def _with_closing(text: str, rng: random.Random) -> str:
    if "{time}" not in text and rng.random() < (0.4 if _is_request(text) else 0.25):
        text = _appended(text, rng.choice(_PHRASES["times"]))
    if rng.random() < 0.15:
        text = _appended(text, rng.choice(_PHRASES["closings"]))
    return text


def _with_slips(text: str, rng: random.Random) -> str:
    """Add a filler, drop a small word or swap two letters."""
    words = text.split(" ")
    where = rng.randrange(len(words))
    if rng.random() < 0.08:
        words.insert(where, rng.choice(_PHRASES["fillers"]))
    elif rng.random() < 0.10:
        if words[where] in _DROPPABLE:
            del words[where]
    elif rng.random() < 0.08 and len(words[where]) > 4 and words[where].isalpha():
        word, i = words[where], rng.randrange(1, len(words[where]) - 1)
        words[where] = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return " ".join(words)


def _is_request(text: str) -> bool:
    return text.split(" ", 1)[0] in _VERBS


def _appended(text: str, phrase: str) -> str:
    return f"{text[:-1]} {phrase}?" if text.endswith("?") else f"{text} {phrase}"
