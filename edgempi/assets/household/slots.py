"""What may stand in the slots of a template, and what each filling says about the intent.

A slot such as ``{room}`` is filled with a phrase, and the filling sets fields of the intent: ``{room}``
filled with "lounge" sets ``room`` to "living room". The names are in ``slots.json``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib import resources
from typing import Any

from edgempi.assets.household.clock import spoken_time
from edgempi.assets.household.numbers import in_words

Value = str | int | None
Filling = tuple[str, dict[str, Value]]

# Either phrase as said -> name in the intent, or the phrases that are names themselves.
_NAMES: dict[str, Any] = json.loads(resources.files(__package__).joinpath("slots.json").read_text(encoding="utf-8"))


def _named(field: str, kind: str) -> Callable[[random.Random], Filling]:
    """Return what fills a slot with a name of this kind, such as a room, and sets the field to it."""
    names = _NAMES[kind]
    meaning = names if isinstance(names, dict) else dict(zip(names, names, strict=True))
    phrases = list(names)

    def fill(rng: random.Random) -> Filling:
        phrase = rng.choice(phrases)
        return phrase, {field: meaning[phrase]}

    return fill


def _digits_or_words(rng: random.Random, number: int) -> str:
    return str(number) if rng.random() < 0.6 else in_words(number)


def _level(rng: random.Random) -> Filling:
    """A percentage: mostly a round one."""
    number = rng.randrange(5, 101, 5) if rng.random() < 0.75 else rng.randrange(1, 100)
    phrase = _digits_or_words(rng, number)
    unit = rng.choice(("%", " percent", "")) if phrase.isdigit() else rng.choice((" percent", " percent", ""))
    return phrase + unit, {"value": number}


def _degrees(rng: random.Random) -> Filling:
    number = rng.randrange(10, 29)
    return _digits_or_words(rng, number) + rng.choice(("", " degrees")), {"value": number}


def _oven_degrees(rng: random.Random) -> Filling:
    number = rng.randrange(80, 260, 10)
    return _digits_or_words(rng, number) + rng.choice(("", " degrees")), {"value": number}


def _steps(rng: random.Random) -> Filling:
    """A change of temperature."""
    number = rng.randrange(1, 6)
    said = [f"{number} degree", f"{in_words(number)} degree"]
    if number > 1:
        said = [f"{phrase}s" for phrase in said]
    if number == 1:
        said.append("a degree")
    if number == 2:
        said.append("a couple of degrees")
    return rng.choice(said), {"value": number}


def _time(rng: random.Random) -> Filling:
    phrase, meant = spoken_time(rng)
    return phrase, {"time": meant}


SLOTS: dict[str, Callable[[random.Random], Filling]] = {
    "room": _named("room", "rooms"),
    "door": _named("room", "doors"),
    "player": _named("device", "players"),
    "appliance": _named("device", "appliances"),
    "colour": _named("value", "colours"),
    "genre": _named("value", "genres"),
    "scene": _named("value", "scenes"),
    "level": _level,
    "degrees": _degrees,
    "oven_degrees": _oven_degrees,
    "steps": _steps,
    "time": _time,
}
