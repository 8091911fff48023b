"""Whole numbers in English words."""

from __future__ import annotations

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Write a number from 0 to 999 as it is spoken: 25 is "twenty five"."""
    if number >= 100:
        hundreds = f"{_SMALL[number // 100]} hundred"
        return f"{hundreds} and {in_words(number % 100)}" if number % 100 else hundreds
    if number < 20:
        return _SMALL[number]
    tens = _TENS[number // 10 - 2]
    return f"{tens} {_SMALL[number % 10]}" if number % 10 else tens
