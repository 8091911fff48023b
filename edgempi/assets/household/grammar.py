"""A grammar of household talk, from which training draws phrasings without end.

``grammar.json`` has, for every intent, the ways to ask for it ("do"), the states that are wished for or
complained of, the things meant and the reasons people give, and general sentence patterns that put these
together. The grammar serves training only, and what it says passes the same sieve as every rewrite: no
frame of a held-out template, and no held-out template word for word.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from importlib import resources
from typing import Any

from edgempi.assets.household.commands import Template

_PART = re.compile(r"<(\w+)>")
_PLURALS = re.compile(r"\b(?:lights|lamps|blinds|shutters|curtains)\b")
# Which part of the lexicon a family of patterns needs; the longer an intent's list, the more it is used.
_FAMILIES = {
    "do": "do",
    "thing_now": "now",
    "thing_wrong": "wrong",
    "thing_too": "too",
    "thing_more": "more",
    "thing_enough": "enough",
    "place_now": "adj",
    "place_bad": "bad",
    "place_enough": "fine",
    "want": "good",
    "stop": "evil",
    "why": "why",
}
_WEIGHTS = {"do": 4.0, "thing_now": 1.5, "thing_wrong": 1.5, "want": 1.5, "place_bad": 1.5, "why": 2.5}
_PLACES = ("in the {room}", "in the {room}", "in the {room}", "in here", "", "")
_SHORT_VOWEL = re.compile(r"(?:[^aeiou]|^)[aeiou][bdgmnpt]$")


@cache
def _grammar() -> dict[str, Any]:
    return dict(json.loads(resources.files(__package__).joinpath("grammar.json").read_text(encoding="utf-8")))


@cache
def _entries() -> list[dict[str, Any]]:
    """Return the lexicon with its lists split, and each entry's families of patterns with their weights."""
    things = {kind: phrases.split("|") for kind, phrases in _grammar()["things"].items()}
    entries = []
    for entry in _grammar()["lexicon"]:
        parts = {part: entry[part].split("|") for part in _FAMILIES.values() if entry.get(part)}
        families = [family for family, part in _FAMILIES.items() if part in parts]
        weights = [_WEIGHTS.get(family, 1.0) for family in families]
        parts["thing"] = things[entry["thing"]]
        fields = tuple(entry["fields"].items())
        entries.append({"intent": entry["intent"], "fields": fields, "parts": parts, "families": (families, weights)})
    return entries


def compose(rng: random.Random) -> Template:
    """Return a phrasing of a random intent, with open slots."""
    entry = rng.choice(_entries())
    families, weights = entry["families"]
    pattern = rng.choice(_grammar()["patterns"][rng.choices(families, weights)[0]])
    thing = rng.choice(entry["parts"]["thing"])

    def expand(match: re.Match[str]) -> str:
        part = match.group(1)
        if part == "thing":
            return thing
        if part == "in":
            return rng.choice(_PLACES)
        if part == "doing":
            return _gerund(_PART.sub(expand, rng.choice(entry["parts"]["do"])))
        return _PART.sub(expand, rng.choice(entry["parts"][part]))

    text = _PART.sub(expand, pattern)
    return Template(_agreeing(_tidy(text), thing), entry["intent"], entry["fields"])


def _gerund(phrase: str) -> str:
    """Turn "put the light on" into "putting the light on"."""
    verb, _, rest = phrase.partition(" ")
    if verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    elif len(verb) < 5 and _SHORT_VOWEL.search(verb) and verb not in ("open", "heat"):
        verb += verb[-1]
    return f"{verb}ing {rest}".rstrip()


def _agreeing(text: str, thing: str) -> str:
    """Make the verb plural after a plural thing."""
    if not _PLURALS.search(thing):
        return text
    for one, many in (
        ("is", "are"),
        ("isn't", "aren't"),
        ("has", "have"),
        ("needs", "need"),
        ("was", "were"),
    ):
        text = text.replace(f"{thing} {one} ", f"{thing} {many} ")
        text = re.sub(rf"\b{one} {re.escape(thing)}", f"{many} {thing}", text)
    return text


def _tidy(text: str) -> str:
    """Close the gaps that empty parts leave."""
    return re.sub(r"\s+([,?]|$)", r"\1", re.sub(r" {2,}", " ", text)).strip()
