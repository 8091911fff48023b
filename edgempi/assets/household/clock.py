"""How people say the time of day, and the 24-hour ``HH:MM`` that they mean.

The rules, for a reader who meets "at ten" in a command:

* a bare hour is the hour as said: "ten" is 10:00, "half past seven" is 07:30, "twelve" is 12:00;
* a part of the day moves it: "seven in the evening" and "seven pm" are 19:00;
* a part of the day belongs to the moment meant: "quarter to eight in the evening" is 19:45;
* "noon" is 12:00 and "midnight" is 00:00.
"""

from __future__ import annotations

import random

from edgempi.assets.household.numbers import in_words

_PARTS_OF_DAY = (
    ("in the morning", range(5, 12)),
    ("in the afternoon", range(12, 18)),
    ("in the evening", range(17, 24)),
    ("tonight", range(18, 24)),
    ("at night", range(20, 24)),
)
_ROUND_MINUTES = (0, 0, 0, 0, 30, 30, 15, 45)
_ODD_MINUTES = (5, 10, 20, 25, 35, 40, 50, 55)


def spoken_time(rng: random.Random) -> tuple[str, str]:
    """Return a way to say a time of day (without its preposition) and the ``HH:MM`` it means."""
    style = rng.random()
    if style < 0.05:
        return rng.choice((("noon", "12:00"), ("midnight", "00:00")))
    minute = rng.choice(_ROUND_MINUTES if rng.random() < 0.75 else _ODD_MINUTES)
    if style < 0.20:
        hour = rng.randrange(24)
        return rng.choice((f"{hour}:{minute:02}", f"{hour:02}:{minute:02}")), f"{hour:02}:{minute:02}"
    if style < 0.35:
        return _with_am_or_pm(rng, minute)
    if style < 0.70:
        hour = rng.randrange(1, 13)
        return _twelve_hour(rng, hour, minute), f"{hour:02}:{minute:02}"
    part, hours = rng.choice(_PARTS_OF_DAY)
    hour = rng.choice(hours)
    return f"{_twelve_hour(rng, hour, minute)} {part}", f"{hour:02}:{minute:02}"


def _with_am_or_pm(rng: random.Random, minute: int) -> tuple[str, str]:
    """Say a time with "am" or "pm"; never twelve, on which people disagree."""
    hour = rng.randrange(1, 12)
    half, offset = rng.choice((("am", 0), ("pm", 12)))
    digits = f"{hour}:{minute:02}" if minute else str(hour)
    said = rng.choice((digits, digits, _hour_and_minute(hour, minute)))
    space = "" if said is digits and rng.random() < 0.3 else " "
    return f"{said}{space}{half}", f"{hour + offset:02}:{minute:02}"


def _twelve_hour(rng: random.Random, hour: int, minute: int) -> str:
    """Say a 24-hour time on a twelve-hour dial."""
    hour, following = _on_dial(hour), _on_dial(hour + 1)
    if minute == 0:
        return rng.choice((in_words(hour), in_words(hour), f"{in_words(hour)} o'clock", str(hour)))
    if rng.random() < 0.3:
        return rng.choice((_hour_and_minute(hour, minute), f"{hour}:{minute:02}"))
    if minute == 30:
        return f"half past {in_words(hour)}"
    if minute < 30:
        return f"{_minutes(minute)} past {in_words(hour)}"
    return f"{_minutes(60 - minute)} to {in_words(following)}"


def _hour_and_minute(hour: int, minute: int) -> str:
    """Say the two numbers one after the other: "seven thirty", "seven oh five"."""
    if minute == 0:
        return in_words(hour)
    return f"{in_words(hour)} {'oh ' if minute < 10 else ''}{in_words(minute)}"


def _minutes(minute: int) -> str:
    return "quarter" if minute == 15 else in_words(minute)


def _on_dial(hour: int) -> int:
    return (hour - 1) % 12 + 1
