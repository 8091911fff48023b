"""What a rank sent, by unit of the model, and how long it stood waiting."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Traffic:
    """Counters of one rank; `within` names the unit that the bytes are for."""

    def __init__(self) -> None:
        self.unit = "setup"
        self.bytes_sent: Counter[str] = Counter()
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

    def sent(self, nbytes: int) -> None:
        """One message of `nbytes` left this rank."""
        self.bytes_sent[self.unit] += nbytes
        self.messages[self.unit] += 1

    def waited(self, seconds: float) -> None:
        """This rank waited with nothing else to do: exposed communication."""
        self.waited_s[self.unit] += seconds

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.bytes_sent.clear()
        self.messages.clear()
        self.waited_s.clear()

    def as_dict(self) -> dict[str, Any]:
        """The totals, in JSON types."""
        return {
            "bytes_sent": sum(self.bytes_sent.values()),
            "messages": sum(self.messages.values()),
            "waited_s": sum(self.waited_s.values()),
            "bytes_sent_by_unit": dict(self.bytes_sent),
        }
