"""Figures as cells of a table; what is not known is a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DASH = "-"


def marked(value: float | None, killed: bool | None) -> str:
    """A figure, with a star where it was measured without the memory limit that it does not fit."""
    return number(value) + (" OOM*" if killed else "")


def as_published(value: float | str) -> str:
    """A published speed-up."""
    return value if isinstance(value, str) else f"{value:.2f}"


def in_seconds(value: float | str) -> str:
    """A published latency."""
    return value if isinstance(value, str) else f"{value:.2f} s"


def over_floor(found: Mapping[str, Any] | None) -> str:
    """A way's latency over the larger of its two floors."""
    return number(None if found is None else found["measured"]["over_floor"])


def number(value: float | None) -> str:
    """Two digits."""
    return DASH if value is None else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share of one."""
    return DASH if share is None else f"{100 * share:.0f} %"


def in_ms(value: float | None) -> str:
    """Seconds as milliseconds."""
    return DASH if value is None else f"{value * 1e3:.0f}"


def listed(values: set[Any]) -> str:
    """The different values of a setting."""
    return ", ".join(sorted(f"{value:g}" for value in values if value is not None)) or DASH
