"""What a record says: latencies, ratios, floors, and who was out of memory. The ground of tables and pictures alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.galaxy.published import ENVIRONMENTS
from benchmarks.phrases import kept_speed
from benchmarks.shapes import SHAPES

Record = Mapping[str, Any]
SPEEDS = "devices' speed, after"
"""The column that says what the devices showed after the job, beside their nominal speed."""
FIXED = ("M-LM", "SP", "hybrid", "heads", "galaxy planner", "one device", "pipeline")
"""Ways that `auto` must not be slower than."""
BASELINES = ("M-LM", "SP", "pipeline", "one device")
"""Ways that were there before Galaxy."""


def way(record: Record, name: str) -> dict[str, Any] | None:
    """What was measured of a way, or None where there is no such way or no plan fitted."""
    found = next((one for one in record["result"]["ways"] if one["name"] == name), None)
    return None if found is None or found["measured"] is None else found


def seconds(record: Record, name: str) -> float | None:
    """A way's median latency."""
    found = way(record, name)
    return None if found is None else float(found["measured"]["latency_s"]["p50"])


def ratio(record: Record, slow: str, fast: str) -> float | None:
    """How many times as fast one way is as another, the median over the rounds that they shared."""
    a, b = way(record, slow), way(record, fast)
    if a is None or b is None:
        return None
    pairs = zip(a["measured"]["rounds_s"], b["measured"]["rounds_s"], strict=True)
    return median(x / y for x, y in pairs)


def out_of_memory(records: Sequence[Record], model: str, cluster: str, name: str) -> bool | None:
    """Whether the kernel killed a way under the real memory limit; None where that was not tried."""
    for record in records:
        asked = record["run"]["parameters"]
        if (asked["model"], asked["cluster"], asked["way"]) == (model, cluster, name):
            return bool(record["result"]["killed"])
    return None


def scaled(cells: Sequence[Record], record: Record, name: str, weak: bool) -> float | None:
    """How many times as fast as one device (strong), or which share of linear (weak: one device's time over ours)."""
    model = record["run"]["parameters"]["model"]
    ones = (r for r in cells if r["run"]["parameters"]["model"] == model and len(r["result"]["devices"]) == 1)
    one = next(ones, None)
    ours = seconds(record, name)
    alone = None if one is None else seconds(one, "one device")
    return None if ours is None or alone is None else alone / ours


def auto_behind(record: Record) -> float | None:
    """By which share `auto` is slower than the fastest fixed way (below zero: faster)."""
    ours, best = seconds(record, "auto"), least(record, FIXED)
    return None if ours is None or best is None else ours / best - 1


def latency_off(cells: Sequence[Record]) -> list[float]:
    """By which share each predicted latency was too long (below zero: too short)."""
    ways = [one for record in cells for one in record["result"]["ways"]]
    return [one["predicted_off"] for one in ways if one["measured"] is not None and one["predicted"] is not None]


def peak_off(records: Sequence[Record]) -> list[float]:
    """By which share each rank's predicted memory was too much, where a way ran alone, whole or cut."""
    ranks = [rank for record in records for rank in record["result"].get("ranks", [])]
    for record in timed(records):
        ways = record["result"]["ways"]
        if len(ways) == 1 and ways[0]["measured"] is not None:
            ranks += ways[0]["measured"]["ranks"]
    return [rank["predicted_bytes"] / rank["peak_bytes"] - 1 for rank in ranks if rank["peak_bytes"]]


def saved(record: Record, name: str) -> float | None:
    """Which share of the fastest baseline's latency a way saves."""
    ours, baseline = seconds(record, name), least(record, BASELINES)
    return None if ours is None or baseline is None else 1 - ours / baseline


def speeds(record: Record) -> str:
    """What the devices showed after the job, beside their nominal speed: the least and the most."""
    return kept_speed(record["result"].get("speeds"))


def nominal(record: Record) -> float:
    """The links' rate before `time_scale`, in bits per second."""
    return float(record["result"]["link_bits_per_s"] / record["result"]["time_scale"])


def least(record: Record, names: Sequence[str]) -> float | None:
    """The fastest of the ways, in seconds; None where none of them ran."""
    return min((taken for name in names if (taken := seconds(record, name)) is not None), default=None)


def timed(records: Sequence[Record]) -> list[Record]:
    """The records of `time` cells."""
    return [record for record in records if not record["run"]["parameters"]["way"]]


def place(record: Record) -> dict[str, str]:
    """The columns that say what a row is of."""
    asked = record["run"]["parameters"]
    whole = SHAPES[asked["model"]].layers
    return {
        "environment": ENVIRONMENTS.get(asked["cluster"], asked["cluster"]),
        "model": asked["model"],
        "layers": f"{asked['layers']} of {whole}",
    }
