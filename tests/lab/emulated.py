"""What the tests of the emulated LAN share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgempi.errors import UserError
from edgempi.lab import state
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.tools import check_tools

LAB = ("cluster=lab_b", "cluster.lab.time_scale=3", "cluster.timeout_s=4")
"""Three devices, faster than usual: what the tests wait for is mostly imports."""


def why_not() -> str | None:
    """Why no lab can be built on this machine now, or None."""
    try:
        check_tools()
        Cgroups.of_machine()
    except UserError as error:
        return str(error)
    holder = state.holder()
    if holder or state.read_state():
        return f"a lab is up already ({holder or 'kept by its user'})"
    return None


def edgempi(folder: Path, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `edgempi lab WORDS` in a folder."""
    command = [sys.executable, "-m", "edgempi", "lab", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False, env=os.environ
    )
