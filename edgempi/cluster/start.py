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
    abandon = threading.Timer(GRACE_S, _end, (process,))
    forwarder = threading.Thread(target=_forward, args=(process.stderr, abandon), daemon=True)
    forwarder.start()
    try:
        with _signals_raise():
            status = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        abandon.cancel()
    forwarder.join(GRACE_S)
    if status >= 0:
        return status
    return ABANDONED if abandon.ident else 128 - status


def _environment() -> dict[str, str]:
    # Ranks cannot ask our terminal for its width, and Open MPI shows them one of its own even when we write to a file.
    terminal = {
        "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns),
        "TTY_COMPATIBLE": "1" if sys.stdout.isatty() else "0",
    }
    return {**terminal, **os.environ}


def _forward(lines: IO[str], abandon: threading.Timer) -> None:
    for line in said_once(lines):
        # A rank that reports aborts the job; but where a host cannot be reached any more, the launcher waits forever.
        if is_report(line) and not abandon.ident:
            abandon.start()
        sys.stderr.write(line)
        sys.stderr.flush()


@contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[str]) -> None:
    # Listed before the launcher goes: ranks that it abandons are no longer its children.
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    process.wait()
