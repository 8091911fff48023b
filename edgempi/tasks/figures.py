"""Figures of a benchmark: from what each rank measured in each round to quantiles, floors and shares. Pure arithmetic.

latency        of a round, the longest of the ranks' passes, which begin together
transfer       what a rank's bytes take on its link at the rate of their payload
hidden         1 - waited / transfer: how much of it was not exposed; waiting for a slower device counts as exposed
compute floor  the slowest device's pass over a transport that moves nothing
wire floor     the longest transfer of any device
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

HEADERS = 1.0456
"""Bytes on the wire for each byte of payload: Ethernet, IP and TCP headers and gaps, full frames of 1500 bytes."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return dict.fromkeys(("p20", "p50", "p80"), values[0])
    tenths = quantiles(values, n=10, method="inclusive")
    return {"p20": tenths[1], "p50": tenths[4], "p80": tenths[7]}


def rank_figures(
    rounds: Sequence[Mapping[str, float]], floor_s: Sequence[float], payload_bits_per_s: float | None
) -> dict[str, Any]:
    """One rank's.

    Args:
        rounds: `wall_s`, `waited_s` and `bytes_sent` of each.
        floor_s: of each pass without communication; may be empty.
        payload_bits_per_s: of its link; None where nobody knows.
    """
    waited_s = median(one["waited_s"] for one in rounds)
    sent = rounds[-1]["bytes_sent"]
    transfer_s = None if payload_bits_per_s is None else 8 * sent / payload_bits_per_s
    return {
        "wall_s": median(one["wall_s"] for one in rounds),
        "compute_s": median(one["wall_s"] - one["waited_s"] for one in rounds),
        "waited_s": waited_s,
        "bytes_sent": sent,
        "transfer_s": transfer_s,
        "hidden": max(0.0, 1 - waited_s / transfer_s) if transfer_s else None,
        "floor_s": median(floor_s) if floor_s else None,
    }


def way_figures(ranks: Sequence[Mapping[str, Any]], walls_s: Sequence[Sequence[float]]) -> dict[str, Any]:
    """All ranks' together.

    Args:
        ranks: `rank_figures` of each.
        walls_s: of each rank, the seconds of each round.
    """
    rounds_s = [max(round_) for round_ in zip(*walls_s, strict=True)]
    latency = spread(rounds_s)
    floors = {
        "compute_floor_s": _most(rank["floor_s"] for rank in ranks),
        "wire_floor_s": _most(rank["transfer_s"] for rank in ranks),
    }
    floor_s = _most(floors.values())
    return {
        "latency_s": latency,
        "rounds_s": rounds_s,
        **floors,
        "over_floor": latency["p50"] / floor_s if floor_s and None not in floors.values() else None,
    }


def beside_first(first_s: Sequence[float], rounds_s: Sequence[float]) -> dict[str, float]:
    """How many times as fast as the first way, round by round."""
    return spread([a / b for a, b in zip(first_s, rounds_s, strict=True)])


def batches(needs: Sequence[Sequence[int]], rooms: Sequence[int]) -> list[list[int]]:
    """Which ways can be held at once, and so be timed in turns: consecutive ones, as many as fit.

    Args:
        needs: of each way, the bytes on each rank.
        rooms: bytes of each rank. A way that does not fit alone is tried alone.
    """
    found: list[list[int]] = []
    held = [0] * len(rooms)
    for way, need in enumerate(needs):
        together = [a + b for a, b in zip(held, need, strict=True)]
        if found and all(total <= room for total, room in zip(together, rooms, strict=True)):
            found[-1].append(way)
            held = together
        else:
            found.append([way])
            held = list(need)
    return found


def _most(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None
