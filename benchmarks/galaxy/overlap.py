"""The overlap experiment's page: what the traces show of every cell, beside what overlap shall reach."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.galaxy.reading import SPEEDS, Record, nominal, place, seconds, speeds, timed, way
from benchmarks.phrases import DASH, in_ms, percent

WAYS = {"ring": "hybrid", "heads": "heads (whole MLPs)"}
"""The overlapped ways of which there are traces."""


def overlap_rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """A row for every way of every cell that left a trace."""
    rows = []
    for record in timed(records):
        for name in ("ring", "heads"):
            found = way(record, name)
            if found is None or "traced" not in found:
                continue
            seen = found["traced"]
            whole, blocking = in_ms(seconds(record, name)), in_ms(seconds(record, "blocking"))
            compute_s, transfer_s = seen["tile_compute_s"], seen["tile_transfer_s"]
            transfer_bound = transfer_s > compute_s
            rows.append(
                {
                    **place(record),
                    "Mbit/s (nominal)": f"{nominal(record) / 1e6:g}",
                    "way": WAYS[name],
                    "tile: computed in ms": f"{1e3 * compute_s:.1f}",
                    "sent in ms": f"{1e3 * transfer_s:.1f}",
                    "longer": "transfer" if transfer_bound else "computation",
                    "hidden %, by rank": ", ".join(f"{100 * share:.0f}" for share in seen["hidden"]),
                    "idle ms a layer, by rank": ", ".join(f"{1e3 * idle:.1f}" for idle in seen["idle_s"]),
                    "layer ms": f"{1e3 * seen['layer_s']:.1f}",
                    "of it computed ms": f"{1e3 * seen['computed_s']:.1f}",
                    "wire ms": f"{1e3 * seen['wire_s']:.1f}",
                    "un-hideable tile ms": f"{1e3 * seen['unhideable_s']:.1f}",
                    "layer over (wire + un-hideable tile)": f"{seen['over_wire']:.2f}" if transfer_bound else DASH,
                    "whole pass ms (blocking)": f"{whole} ({blocking})",
                    SPEEDS: speeds(record),
                }
            )
    return rows


def promises(cells: Sequence[Record]) -> list[str]:
    """How the traces stand to what overlap shall reach, and how tiles were counted."""
    seen = [found["traced"] for r in cells for name in WAYS if "traced" in (found := way(r, name) or {})]
    if not seen:
        return []
    bound = [one for one in seen if one["tile_transfer_s"] > one["tile_compute_s"]]
    free = [share for one in seen if one not in bound for share in one["hidden"]]
    parts = [
        "From the traces, medians over layers and passes. A tile is one device's row tile in one product; the time on "
        "the wire is that of a rank's own messages at the line rate, headers counted. Hidden is what of it was not "
        "waited for with a message under way; idle is waiting for another device that still computes. Un-hideable is "
        "one tile's computation through all products that communicate (the last tile to arrive must be multiplied "
        "before its sum can leave), and one sub-tile's through what works on the own tokens alone (norms; for `heads`, "
        "the MLP)."
    ]
    if free:
        parts.append(
            f"Where a tile is computed for longer than it travels, {percent(min(free))} of the transfers are hidden at "
            f"least, {percent(median(free))} in the median."
        )
    if bound:
        computing = [one for one in bound if one["computed_s"] > one["wire_s"] + one["unhideable_s"]]
        waiting = [one["over_wire"] for one in bound if one not in computing]
        parts.append(f"Where it travels for longer, a layer takes {_most(waiting)} (wire + un-hideable tile).")
        if computing:
            parts.append(
                f"In {len(computing)} of these {len(bound)} a layer's computation alone exceeds that sum, which no "
                f"overlap can undo: it takes {_most([one['over_wire'] for one in computing])} the sum, and "
                f"{_most([one['layer_s'] / one['computed_s'] for one in computing])} its computation."
            )
    return parts


def _most(ratios: Sequence[float]) -> str:
    return f"at most {max(ratios):.2f} x" if ratios else DASH
