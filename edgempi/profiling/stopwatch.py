"""Time calls on a device that may be slowed from outside: by a CPU quota, or by what else runs on it.

A quota is enforced in periods: a call that takes less than one either runs at full speed or stands still for most of a
period, so single wall times are lumpy and their median is wrong. The processor time of the calling thread is not
touched by that. With one thread, calls are therefore timed in processor time, and multiplied once by how much wall time
a processor second takes, over all calls together (the slowdown): the same share of a core that a run will get. On a
device of its own the slowdown is one, and both clocks agree.

With several threads, processor time says nothing about wall time, and calls are timed by the wall clock. What a device
loses to others while it is measured it is taken to lose in runs too; so measure under the load that runs will meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Stopwatch:
    """Times calls, and learns the slowdown from them.

    Args:
        threads: that compute.
    """

    def __init__(self, threads: int) -> None:
        self.now: Callable[[], float] = time.thread_time if threads == 1 else time.perf_counter
        """The clock in which calls are timed; differences times `slowdown` are seconds."""
        self.busy_s = 0.0
        self.wall_s = 0.0

    def time(self, call: Callable[[], Result]) -> tuple[Result, float]:
        """What the call returns, and what it took by the clock."""
        wall, start = time.perf_counter(), self.now()
        result = call()
        taken = self.now() - start
        self.wall_s += time.perf_counter() - wall
        self.busy_s += taken
        return result, taken

    @property
    def slowdown(self) -> float:
        """Wall seconds per second of the clock, over all calls so far."""
        return self.wall_s / self.busy_s if self.busy_s else 1.0
