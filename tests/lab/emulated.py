"""What the tests of the emulated LAN share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgempi.errors import UserError
from edgempi.lab import state
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.tools import check_tools

LAB = ("cluster=lab_b", "cluster.lab.time_scale=2", "cluster.timeout_s=4")
"""Three devices, not so fast that a busy machine could not be them."""


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


@dataclass(frozen=True)
class Said:
    """How a command line ended, and what it said."""

    status: int
    out: str
    err: str


Edgempi = Callable[..., Said]
"""`edgempi lab WORDS`, in this process: its start costs more than most of what these tests ask of it."""
