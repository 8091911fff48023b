"""Time calls on a device that may be slowed from outside: by a CPU quota, or by what else runs on it.

A quota is enforced in periods: a call that takes less than one either runs at full speed or stands still for most of a
period, so single wall times are lumpy and their median is wrong. The processor time of the calling thread is not
touched by that. With one thread, calls are therefore timed in processor time, and multiplied once by how much wall time
a processor second takes (the slowdown): the same share of a core that a run will get. On a device of its own the
slowdown is one, and both clocks agree.

The slowdown is taken over all that the thread does between the start and the last look, not over the timed calls alone:
a stop comes when the quota is spent, and where it then falls is not even between long and short calls (measured with a
quota of 30 %: 3.35 over everything, as a forward has it, and 3.44 over the timed calls). So the thread must not sleep.

With several threads, processor time says nothing about wall time, and calls are timed by the wall clock. What a device
loses to others while it is measured it is taken to lose in runs too; so measure under the load that runs will meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Stopwatch:
    """Times calls, and learns the slowdown meanwhile.

    Args:
        threads: that compute.
    """

    def __init__(self, threads: int) -> None:
        self.now: Callable[[], float] = time.thread_time if threads == 1 else time.perf_counter
        """The clock in which calls are timed; differences times `slowdown` are seconds."""
        self._start, self._wall_start = self.now(), time.perf_counter()

    def time(self, call: Callable[[], Result]) -> tuple[Result, float]:
        """What the call returns, and what it took by the clock."""
        start = self.now()
        result = call()
        return result, self.now() - start

    @property
    def slowdown(self) -> float:
        """Wall seconds per second of the clock, since the start."""
        return max(1.0, (time.perf_counter() - self._wall_start) / max(self.now() - self._start, 1e-9))
