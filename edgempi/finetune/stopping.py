"""A signal asks a run to end with the update at hand and to be saved, rather than to die in the middle of it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What batch systems send before they end a job; launchers pass the second on to every rank."""


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Inside, a signal is kept and not acted on; what is yielded says whether one has come. In the main thread only.

    A second one acts as it did before, for who will not wait.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
