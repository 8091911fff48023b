"""Run the system's tools that a lab is built with, and say in one line what stands in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from edgempi.errors import UserError

NEEDED = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount"}
"""Each tool and the package that Debian has it in."""
LIMIT_S = 20.0


def check_tools() -> None:
    """Raise `UserError` unless this user, on this machine, can build a lab; control groups are checked apart."""
    if os.geteuid() != 0:
        raise UserError(
            "lab", value=f"user id {os.geteuid()}", rule="network namespaces and control groups need root",
            remedy="Start edgempi as root (sudo), or use local ranks (cluster=local2)",
        )  # fmt: skip
    for tool, package in NEEDED.items():
        if shutil.which(tool) is None:
            raise UserError(
                "lab", value=f"no {tool} on PATH", rule="the lab is built with it", remedy=f"Install {package}"
            )


def run_tool(*words: str) -> str:
    """What a tool says; raises `UserError` where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"lab: {' '.join(words)}", value=complaint[-1] if complaint else f"status {done.returncode}",
            rule="this machine must allow it", remedy="Use a kernel and a container that have network namespaces, "
            "veth, bridges and the tbf queue, or local ranks (cluster=local2)",
        )  # fmt: skip
    return done.stdout


def nothing_there(words: Sequence[str]) -> bool:
    """Run a tool that removes something; whether it found nothing to remove."""
    return subprocess.run(words, capture_output=True, timeout=LIMIT_S, check=False).returncode != 0
