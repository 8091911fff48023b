"""What a rank did and when, for a timeline that Chrome and Perfetto draw.

A rank notes spans on four lanes: `compute` (units, and products inside them), `wait` (it stood still), `send` and
`receive` (from its post until it was seen complete). Times are this process's `perf_counter`; `timeline.py`
brings the ranks onto one clock. Off by default, when every call returns at its first line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

COMPUTE, WAIT, SEND, RECEIVE = LANES = ("compute", "wait", "send", "receive")


class Event(NamedTuple):
    """A stretch of time on a lane; `about` holds what a click on it shows."""

    lane: str
    name: str
    start_s: float
    stop_s: float
    about: dict[str, Any]


class Flight(NamedTuple):
    """A message under way."""

    lane: str
    name: str
    start_s: float
    nbytes: int
    peer: int


class Trace:
    """One rank's recorder."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[Event] = []

    def start(self) -> None:
        """Record from now on; what was recorded before is forgotten."""
        self.events = []
        self.on = True

    def stop(self) -> None:
        """Record no more; the events stay."""
        self.on = False

    def span(self, lane: str, name: str) -> AbstractContextManager[None]:
        """Record the time that the body takes. Spans of `compute` may be nested."""
        return _Span(self, lane, name) if self.on else _NOTHING

    def add(self, lane: str, name: str, start_s: float, stop_s: float, **about: Any) -> None:
        """Record a stretch that has passed, in times of `perf_counter`."""
        if self.on:
            self.events.append(Event(lane, name, start_s, stop_s, about))

    def post(self, lane: str, name: str, nbytes: int, peer: int) -> Flight | None:
        """A message was posted now; None while nothing is recorded.

        Args:
            lane: `SEND` or `RECEIVE`.
            name: the unit that it is for.
            nbytes: on the wire.
            peer: the other side's world rank.
        """
        return Flight(lane, name, time.perf_counter(), nbytes, peer) if self.on else None

    def land(self, flights: Iterable[Flight | None]) -> None:
        """These messages were just seen complete: record them."""
        if self.on:
            now = time.perf_counter()
            for flight in flights:
                if flight is not None:
                    self.add(flight.lane, flight.name, flight.start_s, now, bytes=flight.nbytes, peer=flight.peer)


class _Span:
    def __init__(self, trace: Trace, lane: str, name: str) -> None:
        self._trace, self._lane, self._name = trace, lane, name

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._trace.add(self._lane, self._name, self._start_s, time.perf_counter())


_NOTHING = nullcontext()
