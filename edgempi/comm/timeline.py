"""The traces of all ranks as one timeline in Chrome's JSON format, which Perfetto opens too.

A process of the timeline is a rank, a thread of it a lane. Messages of one lane may be under way together; since the
slices of a thread must nest, a message that overlaps an earlier one goes to a further thread of the same lane.

Source: "Trace Event Format" (Google): X events are slices with `ts` and `dur` in microseconds, M events name things.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from edgempi.comm.probe import clock_offsets
from edgempi.comm.trace import COMPUTE, LANES, Event
from edgempi.comm.world import World

THREADS_OF_A_LANE = 1000
"""Thread ids of lane i start at i times this."""


def collect_timeline(world: World, names: Sequence[str]) -> dict[str, Any] | None:
    """Bring what the ranks have recorded onto rank 0's clock. Collective: every rank; ends the recording.

    Args:
        world: all ranks.
        names: of the ranks' devices.

    Returns:
        The timeline on rank 0, None elsewhere.
    """
    world.traffic.trace.stop()
    offsets_s = clock_offsets(world, time.perf_counter)
    recorded = world.gather_json([world.host, world.traffic.trace.events])
    if recorded is None:
        return None
    ranks = [[Event(*fields) for fields in events] for _, events in recorded]
    titles = [f"rank {rank}: {name} on {recorded[rank][0]}" for rank, name in enumerate(names)]
    return timeline(ranks, offsets_s, titles)


def timeline(ranks: Sequence[Sequence[Event]], offsets_s: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """The document.

    Args:
        ranks: each rank's events, in times of its own clock.
        offsets_s: how far each rank's clock is ahead of rank 0's.
        names: what to call each rank.

    Returns:
        JSON types; the earliest event is at zero.
    """
    starts = [event.start_s - offset for events, offset in zip(ranks, offsets_s, strict=True) for event in events]
    origin_s = min(starts, default=0.0)
    found: list[dict[str, Any]] = []
    for rank, (events, offset_s, name) in enumerate(zip(ranks, offsets_s, names, strict=True)):
        found += [_named(rank, 0, "process_name", {"name": name})]
        found += [_named(rank, 0, "process_sort_index", {"sort_index": rank})]
        for index, lane in enumerate(LANES):
            own = sorted((e for e in events if e.lane == lane), key=lambda e: (e.start_s, -e.stop_s))
            rows = [own] if lane == COMPUTE else _rows(own)
            for row, members in enumerate(rows):
                thread = index * THREADS_OF_A_LANE + row
                found += [_named(rank, thread, "thread_name", {"name": lane if not row else f"{lane} {row + 1}"})]
                found += [_named(rank, thread, "thread_sort_index", {"sort_index": thread})]
                found += [_slice(event, rank, thread, offset_s + origin_s) for event in members]
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def _rows(events: Iterable[Event]) -> list[list[Event]]:
    """Events in the order of their starts on the fewest rows on which no two overlap; at least one."""
    rows: list[list[Event]] = [[]]
    for event in events:
        free = next((row for row in rows if not row or row[-1].stop_s <= event.start_s), None)
        if free is None:
            rows.append(free := [])
        free.append(event)
    return rows


def _slice(event: Event, rank: int, thread: int, shift_s: float) -> dict[str, Any]:
    # Nanoseconds: with less, a slice could stick out of the one that holds it.
    start_us, stop_us = (round((t - shift_s) * 1e6, 3) for t in (event.start_s, event.stop_s))
    about = {"args": event.about} if event.about else {}
    where = {"ph": "X", "pid": rank, "tid": thread, "ts": start_us, "dur": round(stop_us - start_us, 3)}
    return {"name": event.name, "cat": event.lane, **where, **about}


def _named(rank: int, thread: int, name: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": rank, "tid": thread, "ts": 0, "args": about}
