"""Make quotas sharp: a process on each core that wakes up two thousand times a second and does nothing.

The kernel ends a device's turn when its quota is used up, but looks only at its clock tick (every 4 ms on many systems)
and whenever something else takes the core. A device that has waited for a message then computes at the core's full
speed until the next tick: enough to make ways of sharing that wait often look a fifth faster than they would be on a
device that is really slow. The metronome takes the core for a few microseconds, and the kernel looks.

This file is run as a script as well, and imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BEAT_S = 0.0005
START_S = 0.1
"""When a process that may not beat has ended."""
_PR_SET_PDEATHSIG = 1


@contextmanager
def metronome() -> Iterator[None]:
    """Let it beat on every core that this process may use, while the body runs; it ends with this process too."""
    cores = sorted(os.sched_getaffinity(0))
    words = [sys.executable, "-I", "-S", __file__]
    beating = [subprocess.Popen([*words, str(core), str(os.getpid())], stderr=subprocess.DEVNULL) for core in cores]
    try:
        time.sleep(START_S)
        if any(process.poll() is not None for process in beating):
            print("edgempi: lab: real-time priority is not allowed here, so quotas are enforced at the kernel's clock "
                  "tick: what waits often looks faster than it would be", file=sys.stderr)  # fmt: skip
        yield
    finally:
        for process in beating:
            process.kill()
        for process in beating:
            process.wait()


def beat(core: int, parent: int) -> None:
    """Beat on one core until the parent is gone; raises where real-time priority is not allowed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    while os.getppid() == parent:
        time.sleep(BEAT_S)


if __name__ == "__main__":
    beat(int(sys.argv[1]), int(sys.argv[2]))
