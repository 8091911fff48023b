"""The experiments' index: every page with its picture, and what holds over all of their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.galaxy.reading import Record, auto_behind, latency_off, peak_off, ratio, timed, way
from benchmarks.galaxy.tables import TABLES
from benchmarks.reduce import markdown

EQUAL, UNEQUAL = ("lab_a", "lab_b", "lab_c"), ("lab_d", "lab_e", "lab_f")
ALLOWED = 0.05


def index(records: Mapping[str, Sequence[Record]]) -> str:
    """The page.

    Args:
        records: of each experiment that was measured.
    """
    every = [record for found in records.values() for record in found]
    links = "\n".join(f"- [{TABLES[table][0]}]({table}.md)" for table in records)
    facts = [
        *_predictions(every),
        *_planner(every),
        *_wire(every),
        *_unequal(every),
        *_speeds(every),
        *_verdicts(every),
    ]
    rows = [{"over all cells": what, "figure": figure} for what, figure in facts]
    parts = ["# Galaxy's inference experiments, emulated", links, markdown(rows) if rows else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def _predictions(every: Sequence[Record]) -> list[tuple[str, str]]:
    found = []
    for what, signed in (("latency", latency_off(timed(every))), ("peak memory", peak_off(every))):
        if signed:
            off = [abs(share) for share in signed]
            text = f"{100 * median(off):.1f} %, {100 * max(off):.1f} % ({len(off)} figures)"
            found.append((f"predicted {what} off, median and worst", text))
    return found


def _planner(every: Sequence[Record]) -> list[tuple[str, str]]:
    cells = [record for record in timed(every) if record["run"]["parameters"]["cluster"] in (*EQUAL, *UNEQUAL)]
    losses = [(loss, record) for record in cells if (loss := auto_behind(record)) is not None]
    if not losses:
        return []
    loss, record = max(losses, key=lambda pair: pair[0])
    asked = record["run"]["parameters"]
    where = f"{asked['model']}, {asked['cluster']}, {asked['table']}"
    return [("`auto` (fp32) slower than the best fixed way, at worst", f"{100 * loss:+.1f} % ({where})")]


def _wire(every: Sequence[Record]) -> list[tuple[str, str]]:
    lossy = [(record, found) for record in timed(every) if (found := way(record, "auto int8")) is not None]
    measured = [found["measured"] for _, found in lossy]
    nominal = [
        found["measured"]["over_floor"] for record, found in lossy
        if record["run"]["parameters"]["table"] == "homogeneous" and found["measured"]["over_floor"]
    ]  # fmt: skip
    rows = []
    if nominal:
        text = f"{min(nominal):.2f} to {max(nominal):.2f}"
        rows.append(("latency over its floor, int8 allowed, A to C at the nominal link", text))
    if measured:
        error, same = max(m["relative_error"] for m in measured), min(m["same_argmax"] for m in measured)
        rows.append(("largest relative error, int8 allowed", f"{100 * error:.2f} %"))
        rows.append(("fewest tokens with the same argmax, int8 allowed", f"{100 * same:.1f} %"))
    return rows


def _unequal(every: Sequence[Record]) -> list[tuple[str, str]]:
    cells = [record for record in timed(every) if record["run"]["parameters"]["table"] == "heterogeneous"]
    gains = {cluster: [r for r in cells if r["run"]["parameters"]["cluster"] == cluster] for cluster in UNEQUAL}
    found = {
        cluster[-1].upper(): [gain for r in records if (gain := ratio(r, "M-LM", "auto int8")) is not None]
        for cluster, records in gains.items()
    }
    text = ", ".join(f"{place} {min(ratios):.2f}x" for place, ratios in found.items() if ratios)
    return [("times as fast as M-LM, int8 allowed, at least", text)] if text else []


def _speeds(every: Sequence[Record]) -> list[tuple[str, str]]:
    found = [speeds for record in timed(every) if (speeds := record["result"].get("speeds")) is not None]
    off = [max(abs(share - 1) for share in one["after"].values()) for one in found]
    if not off:
        return []
    text = f"{100 * median(off):.1f} %, {100 * max(off):.1f} % ({sum(share > ALLOWED for share in off)} above 5 %)"
    return [("a device's speed after a job off by, median and worst", text)]


def _verdicts(every: Sequence[Record]) -> list[tuple[str, str]]:
    fits = [record["result"] for record in every if "killed" in record["result"]]
    right = sum(bool(result["killed"]) == (result["misfit"] is not None) for result in fits)
    return [("out of memory or not, as the planner said", f"{right} of {len(fits)}")] if fits else []
