"""What this process has used, by the kernel's own counters (Linux)."""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS, IO, CLEAR = Path("/proc/self/status"), Path("/proc/self/io"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """The memory that is resident now."""
    return _field(STATUS, "VmRSS") * 1024


def peak_bytes() -> int:
    """The most that was resident since the start, or since `forget_peak`."""
    return _field(STATUS, "VmHWM") * 1024


def forget_peak() -> None:
    """Let the peak start again from what is resident now; where the kernel refuses, the older peak stays."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def read_bytes() -> int:
    """All bytes that the process asked the kernel to read, from files, pipes or the page cache."""
    return _field(IO, "rchar")


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # not Linux, or hidden: nothing is known
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
