"""Figures of this experiment as cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.phrases import number


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
