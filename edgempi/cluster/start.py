"""Run a launcher to its end: forward what it says, pass on Ctrl-C and SIGTERM, leave no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

import psutil

from edgempi.cluster.messages import is_report, said_once

GRACE_S = 5.0
"""How long the ranks may take to end when asked, or the launcher once a rank has failed, before they are killed."""


HASTE_S = 0.5
"""The same for ranks whose launcher has had its time already."""
ABANDONED = 1
"""The status of a launcher that had to be ended after a rank's report: that of any failure."""


class StoppedError(KeyboardInterrupt):
    """A signal asked us to stop; like Ctrl-C, nothing that handles errors may swallow it."""

    def __init__(self, signal_number: int) -> None:
        self.status = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


def run_to_the_end(command: Sequence[str]) -> int:
    """Run `command` and return its exit status; a launcher that cannot end what has failed is ended.

    Raises:
        StoppedError: a signal came; the command and all it started are gone.
    """
    # A process group of its own: Ctrl-C then reaches the launcher once, from us, and not twice.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
        env=_environment(),
    )
    assert process.stderr is not None
    abandoned = threading.Event()
    deadline = threading.Timer(GRACE_S, _abandon, (process, abandoned))
    forwarder = threading.Thread(target=_forward, args=(process.stderr, deadline), daemon=True)
    forwarder.start()
    try:
        with signals_raise():
            status = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        deadline.cancel()
    if abandoned.is_set():
        deadline.join()
        return ABANDONED
    forwarder.join(GRACE_S)
    return status if status >= 0 else 128 - status


def _environment() -> dict[str, str]:
    # Ranks cannot ask our terminal for its width, and Open MPI shows them one of its own even when we write to a file.
    terminal = {
        "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns),
        "TTY_COMPATIBLE": "1" if sys.stdout.isatty() else "0",
    }
    return {**terminal, **os.environ}


def _forward(lines: IO[str], deadline: threading.Timer) -> None:
    for line in said_once(lines):
        # A rank that reports aborts the job; but where a host cannot be reached any more, the launcher waits forever.
        if is_report(line) and not deadline.ident:
            deadline.start()
        sys.stderr.write(line)
        sys.stderr.flush()


@contextmanager
def signals_raise() -> Iterator[None]:
    """Meanwhile a signal that asks this process to stop raises `StoppedError`; the main thread must call."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _abandon(process: subprocess.Popen[str], abandoned: threading.Event) -> None:
    abandoned.set()
    _end(process, HASTE_S)


def _end(process: subprocess.Popen[str], grace_s: float | None = None) -> None:
    # Listed before the launcher goes: ranks that it abandons are no longer its children.
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S if grace_s is None else grace_s)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    process.wait()
