"""How far a run is, for the person who waits: one bar on a terminal, else a line every few seconds.

A rank that a launcher has started has no terminal: its output comes line by line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from edgempi.finetune.course import Moved

EVERY_S = 5.0


class Bar:
    """Shows each update of a run; used by the rank that talks to a person.

    Args:
        steps: updates of the whole run.
        done: of them, those that are done.
        console: where to.
        clock: gives seconds.
    """

    def __init__(
        self, steps: int, done: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._clock = steps, clock
        self._console = Console(stderr=True) if console is None else console
        self._told = clock()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=steps, completed=done)
            self._bar.start()

    def moved(self, moved: Moved) -> None:
        """Show where the run stands."""
        now = self._clock()
        if self._bar is not None:
            self._bar.update(self._task, completed=moved.position.step, description=told(moved))
        elif now - self._told >= EVERY_S:
            self._told = now
            line = f"edgempi: step {moved.position.step} of {self._steps}, {told(moved)}"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def refilled(self, done: int, rows: int) -> None:
        """Show how far it is with the activations that are computed apart before training goes on."""
        now = self._clock()
        said = f"the backbone runs for what the cache lacks: {done} of {rows} rows"
        if self._bar is not None:
            self._bar.update(self._task, description=said)
        elif now - self._told >= EVERY_S or done == rows:
            self._told = now
            self._console.print(f"edgempi: {said}", soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def told(moved: Moved) -> str:
    """Phase, loss, samples a second and the time left, in words."""
    left = timedelta(seconds=round(moved.left_s))
    return f"{moved.phase}: loss {moved.loss:.4f}, {moved.samples_per_s:.3g} samples/s, {left} left"
