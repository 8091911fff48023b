"""What a rank sent, by unit of the model and by receiver, and how long it stood waiting."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgempi.comm.trace import WAIT, Trace


class Traffic:
    """Counters of one rank; `within` names the unit that the bytes are for.

    Attributes:
        trace: the recorder of when things happened, off unless somebody starts it.
    """

    def __init__(self) -> None:
        self.unit = "setup"
        self.trace = Trace()
        self.bytes_sent: Counter[str] = Counter()
        self.bytes_to: Counter[int] = Counter()
        self.messages: Counter[str] = Counter()
        self.waited_s: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def within(self, unit: str) -> Iterator[None]:
        """Count what happens inside for `unit`."""
        outer, self.unit = self.unit, unit
        try:
            yield
        finally:
            self.unit = outer

    def sent(self, nbytes: int, target: int) -> None:
        """One message of `nbytes` left this rank, for the world rank `target`."""
        self.bytes_sent[self.unit] += nbytes
        self.bytes_to[target] += nbytes
        self.messages[self.unit] += 1

    def waited(self, seconds: float) -> None:
        """This rank waited until now with nothing else to do: exposed communication."""
        now = time.perf_counter()
        self.trace.add(WAIT, self.unit, now - seconds, now)
        self.waited_s[self.unit] += seconds

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.bytes_sent.clear()
        self.bytes_to.clear()
        self.messages.clear()
        self.waited_s.clear()

    def as_dict(self) -> dict[str, Any]:
        """The totals, in JSON types."""
        return {
            "bytes_sent": sum(self.bytes_sent.values()),
            "messages": sum(self.messages.values()),
            "waited_s": sum(self.waited_s.values()),
            "bytes_sent_by_unit": dict(self.bytes_sent),
            "bytes_sent_to": {str(rank): nbytes for rank, nbytes in self.bytes_to.items()},
        }
