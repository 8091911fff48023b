"""The clock of one thread does not see what stops it; the slowdown does."""

from __future__ import annotations

import time

import pytest

from edgempi.profiling.stopwatch import Stopwatch


def test_a_stopped_call_is_slow_but_not_busy() -> None:
    watch = Stopwatch(threads=1)
    result, busy_s = watch.time(lambda: time.sleep(0.05) or "done")
    assert result == "done"
    assert busy_s < 0.025
    assert watch.slowdown > 2


def test_several_threads_are_timed_by_the_wall() -> None:
    watch = Stopwatch(threads=2)
    _, taken_s = watch.time(lambda: time.sleep(0.02))
    assert taken_s >= 0.02
    assert watch.slowdown == pytest.approx(1, rel=0.1)


def test_the_slowdown_is_never_below_one() -> None:
    assert all(Stopwatch(threads).slowdown >= 1 for threads in (1, 2))
