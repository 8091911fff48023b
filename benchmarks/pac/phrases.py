"""Figures of these experiments as cells of a table; what is not known is a dash."""

from __future__ import annotations

from benchmarks.pac.published import BATCH
from benchmarks.phrases import DASH


def in_hours(value: float | str | None) -> str:
    """Hours, or a word in their place."""
    return DASH if value is None else value if isinstance(value, str) else f"{value:.2f}"


def in_s(value: float | None) -> str:
    """Seconds."""
    return DASH if value is None else f"{value:.2f}"


def rate(seconds: float | None) -> str:
    """Samples per second, from what a mini-batch takes."""
    return DASH if seconds is None else f"{BATCH / seconds:.2f}"
