"""Figures as cells of a table; what is not known is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DASH = "-"


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


def kept_speed(speeds: Mapping[str, Any] | None) -> str:
    """What devices showed after a job, beside their nominal speed (`workshop.Emulated`): the least and the most."""
    if speeds is None:
        return DASH
    off = [100 * (share - 1) for share in speeds["after"].values()]
    tries = f" ({speeds['attempts']} attempts)" if speeds["attempts"] > 1 else ""
    return f"{min(off):+.0f}..{max(off):+.0f} %{tries}"


def machines(records: Sequence[Mapping[str, Any]]) -> str:
    """On what, and at which commits, records were made."""
    metas = {f"{r['meta']['cpu']}, {r['meta']['cores']} cores, torch {r['meta']['packages']['torch']}" for r in records}
    commits = {str(record["run"]["commit"]) for record in records}
    return f"Machine: {'; '.join(sorted(metas))}. Commit: {', '.join(sorted(commits))}."
