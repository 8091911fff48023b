"""Where experiments are measured: command lines that run to their end, and an emulated LAN whose devices keep speed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from edgempi.config.load import compose
from edgempi.errors import UserError
from edgempi.lab.layout import describe
from edgempi.lab.session import bring_up, hold, retune, tear_down
from edgempi.lab.state import LabState, read_state

LIMIT_S = 1200
"""The longest that one command may take."""
LAST_LINES = 15
DRIFT = 0.05
"""By how much a device's speed may be off right before or after a job; else the cell is measured again."""
BUSY_S, BUSY_ATTEMPTS = 15.0, 6
"""How long to wait, and how often, while the machine's cores are too slow for the devices: others use them."""


class CellError(RuntimeError):
    """A cell's command failed for another reason than its memory; the text holds what it said last."""


class Emulated:
    """One lab at a time, and what its devices show of their speed.

    Args:
        attempts: how often a job is measured at most, while its devices do not keep their speed.
    """

    def __init__(self, attempts: int = 3) -> None:
        self._attempts = attempts
        self._up: tuple[str, ...] = ()
        self._tuned: LabState | None = None
        """The lab as calibrated, where no job has run in it since."""

    def enter(self, words: Sequence[str]) -> None:
        """Bring up the lab of a configuration, in the place of another one.

        Args:
            words: of the command line, `cluster=lab_a` and settings of its lab.

        Raises:
            CellError: the lab refuses.
        """
        if tuple(words) == self._up:
            return
        with _as_cell_error(), hold("lab up"):
            self._up, self._tuned = (), None
            self._tuned = bring_up(describe(compose(list(words)).cluster), kept=True)
            self._up = tuple(words)

    def close(self) -> None:
        """Take the lab down."""
        if self._up:
            with _as_cell_error(), hold("lab down"):
                tear_down()
        self._up, self._tuned = (), None

    def disturbed(self) -> None:
        """A job has run: speeds are to be looked at again."""
        self._tuned = None

    def steadily(self, job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a job while the devices keep their speed: of several attempts, the one in which they kept it best.

        Returns:
            What the job gave, and as `speeds` what the devices showed before and after it of their nominal rates.
        """
        best: dict[str, Any] = {}
        least = float("inf")
        for attempt in range(1, self._attempts + 1):
            before = self.tune()[1].speeds
            if drift(before) > DRIFT:  # the machine was busy for a moment
                self._tuned = None
                before = self.tune()[1].speeds
            self._tuned = None
            result = job()
            after = self.tune()[0]
            off = max(drift(before), drift(after))
            if off < least:
                best, least = {**result, "speeds": {"before": before, "after": after}}, off
            best["speeds"]["attempts"] = attempt
            if off <= DRIFT:
                break
        return best

    def tune(self) -> tuple[dict[str, float], LabState]:
        """What the devices show of their nominal speed by now, and the lab with quotas that are right again."""
        if self._tuned is not None:
            return self._tuned.speeds, self._tuned
        up = read_state()
        assert up is not None
        with _as_cell_error(), hold("lab calibration"):
            found, self._tuned = _patiently(lambda: retune(up))
        return found, self._tuned


def edgempi(*words: str) -> None:
    """Run one command line to its end.

    Raises:
        CellError: it failed, or took too long.
    """
    command = [sys.executable, "-m", "edgempi", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CellError(f"{' '.join(words)}: more than {LIMIT_S} s") from error
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-LAST_LINES:])
        raise CellError(f"edgempi {' '.join(words)} ended with status {done.returncode}:\n{said}")


def drift(speeds: Mapping[str, float]) -> float:
    """By how much the device that is farthest from its nominal speed is off."""
    return max(abs(share - 1) for share in speeds.values())


def lab_record() -> dict[str, Any]:
    """The lab that is up, in JSON types."""
    state = read_state()
    return {} if state is None else state.as_dict()


def _patiently(call: Callable[[], tuple[dict[str, float], LabState]]) -> tuple[dict[str, float], LabState]:
    """Call again where the machine was too slow for a moment."""
    for _ in range(BUSY_ATTEMPTS - 1):
        with suppress(UserError):
            return call()
        time.sleep(BUSY_S)
    return call()


@contextmanager
def _as_cell_error() -> Iterator[None]:
    """What the lab refuses fails the cell and not the others."""
    try:
        yield
    except UserError as error:
        raise CellError(f"the lab: {error}") from error
