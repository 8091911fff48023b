"""What is up on this machine: one lock, held by whoever works with the lab, and one file that says what was built.

The kernel frees the lock when its holder dies, however it dies. So a file without a holder that was not meant to stay
is the remains of a crash, and whoever takes the lock next removes them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.lab.layout import Lan

FOLDER = Path("/run/edgempi-lab")
STATE, LOCK, HOSTS, AGENT = FOLDER / "state.json", FOLDER / "lock", FOLDER / "hosts", FOLDER / "agent"


@dataclass(frozen=True)
class LabState:
    """A lab that is up.

    Args:
        lan: what was asked for.
        kept: whether it stays until `edgempi lab down`; otherwise it belongs to the job that brought it up.
        full_flops: the GEMM rate of one core without a quota.
        baseline_bytes: what a rank's imports take.
        cores: the quota of each device.
        flops: what each device was measured to do under it, all at once.
    """

    lan: Lan
    kept: bool
    full_flops: float = 0.0
    baseline_bytes: int = 0
    cores: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)

    @property
    def speeds(self) -> dict[str, float]:
        """What each device was measured to do, as a share of its nominal rate."""
        return {device.host: self.flops[device.host] / device.flops for device in self.lan.devices}

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self) | {"lan": self.lan.as_dict()}


@contextmanager
def exclusive(what: str) -> Iterator[None]:
    """Hold the machine's lab for `what`; raises `UserError` naming the process that has it already."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    # Not inherited by what is started meanwhile: the lock goes with this process.
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "lab", value=f"in use by {_holder(descriptor)}",
                rule="one job at a time: two would slow each other down", remedy="Wait for it, or end it",
            ) from None  # fmt: skip
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} (edgempi {what})".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder() -> str | None:
    """Who works with the lab now, or None."""
    try:
        descriptor = os.open(LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    finally:
        os.close(descriptor)
    return None


def read_state() -> LabState | None:
    """The lab that is up, or None."""
    try:
        values = json.loads(STATE.read_text())
        return LabState(**values | {"lan": Lan.from_dict(values["lan"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(state: LabState) -> None:
    """Say what is up."""
    write_atomic(STATE, json.dumps(state.as_dict(), indent=2) + "\n")


def forget() -> None:
    """Nothing is up; the lock stays, since others may be waiting for it."""
    for file in (STATE, HOSTS, AGENT):
        with suppress(FileNotFoundError):
            file.unlink()


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
