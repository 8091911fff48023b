"""Stand in for ssh: `python -m edgempi.lab.agent [ssh options] HOST COMMAND...` runs a command on an emulated device.

Launchers call it as they would call ssh. It joins the device's control groups and namespaces, and becomes the command;
hostname, shared memory and message queues are the command's own, as they are between machines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from edgempi.lab.cgroups import Cgroups
from edgempi.lab.layout import HEAD
from edgempi.lab.network import NAMESPACES, namespace
from edgempi.lab.state import HOSTS

OPTIONS_WITH_VALUE = "bcDEeFIiJLlmOopQRSWw"
"""Those of ssh's options that take the next word."""

_ENTER = """
echo "$0" > /proc/sys/kernel/hostname
mount --bind "$1" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
"""
_OWN_INTERFACES = """
mount -t sysfs sysfs /sys
"""
_BECOME = """
exec sh -c "$2"
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Become the command, or end with a message."""
    host, command = parse(list(sys.argv[1:] if argv is None else argv))
    words = entering(host, command)
    Cgroups.of_machine().join(host)
    os.execvp(words[0], words)


def parse(words: list[str]) -> tuple[str, str]:
    """The host, and the command as the one text that ssh would hand to the far shell."""
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if len(option) == 2 and option[1] in OPTIONS_WITH_VALUE and words:
            words.pop(0)
    if len(words) < 2:
        sys.exit("usage: python -m edgempi.lab.agent [ssh options] HOST COMMAND...")
    return words[0].rpartition("@")[2], " ".join(words[1:])


def entering(host: str, command: str) -> list[str]:
    """The argv that runs `command` in a place's namespaces.

    The launcher's place keeps the machine's /sys: from there the agent must find the control groups again.
    """
    script = _ENTER + ("" if host == HEAD else _OWN_INTERFACES) + _BECOME
    return [
        "nsenter", f"--net={NAMESPACES / namespace(host)}", "unshare", "--uts", "--ipc", "--mount",
        "sh", "-ec", script, host, str(HOSTS), command,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
