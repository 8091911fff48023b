"""A device's processor and memory: one control group per place of the lab, of version 1 or 2 of the kernel's interface.

The quota is a millisecond or more in a period of a few. The kernel's default period of 100 ms would make a slow device
one that runs at full speed and then stands still for long; `metronome.py` makes the kernel keep to what is this short.
"""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgempi.errors import UserError

LEAST_QUOTA_US, LEAST_PERIOD_US = 1_000, 2_000
"""The kernel allows no quota under a millisecond."""
GROUP = "edgempi-lab"
WEIGHT = {1: ("cpu.shares", "262144"), 2: ("cpu.weight", "10000")}
"""The most: the devices get their quotas also while something else wants the processors."""
END_S = 5.0


@dataclass(frozen=True)
class Cgroups:
    """The control groups of a lab.

    Args:
        version: of the kernel's interface.
        cpu: the root of the hierarchy that limits processors.
        memory: the root of the one that limits memory; the same in version 2.
    """

    version: int
    cpu: Path
    memory: Path

    @classmethod
    def of_machine(cls, mounts: str | None = None) -> Cgroups:
        """What this machine has mounted; raises `UserError` where the two controllers are not there.

        Args:
            mounts: the text of /proc/mounts, read here by default.
        """
        found: dict[str, Path] = {}
        for line in (Path("/proc/mounts").read_text() if mounts is None else mounts).splitlines():
            _, where, kind, options, *_ = line.split()
            if kind == "cgroup":
                found |= {name: Path(where) for name in ("cpu", "memory") if name in options.split(",")}
            elif kind == "cgroup2":
                found["unified"] = Path(where)
        if {"cpu", "memory"} <= set(found):
            return cls(1, found["cpu"], found["memory"])
        unified = found.get("unified")
        if unified is not None:
            with suppress(OSError):
                if {"cpu", "memory"} <= set((unified / "cgroup.controllers").read_text().split()):
                    return cls(2, unified, unified)
        raise UserError(
            "lab", value="no control groups for cpu and memory", rule="they make a device slow and small",
            remedy="Mount them (/sys/fs/cgroup), or start the container with them writable",
        )  # fmt: skip

    def create(self, places: list[str]) -> None:
        """Make the groups, without limits."""
        try:
            for root in self._roots():
                (root / GROUP).mkdir(exist_ok=True)
                if self.version == 2:
                    for parent in (root, root / GROUP):
                        (parent / "cgroup.subtree_control").write_text("+cpu +memory")
            name, most = WEIGHT[self.version]
            (self.cpu / GROUP / name).write_text(most)
            for root in self._roots():
                for place in places:
                    (root / GROUP / place).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                "lab", value=f"{error.filename}: {error.strerror}", rule="control groups are made there",
                remedy="Start the container with writable control groups (/sys/fs/cgroup)",
            ) from error  # fmt: skip

    def set_quota(self, place: str, cores: float) -> None:
        """Let a place use this many cores."""
        period_us = max(LEAST_PERIOD_US, math.ceil(LEAST_QUOTA_US / cores))
        group, quota_us = self.cpu / GROUP / place, round(cores * period_us)
        if self.version == 2:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            return
        # Neither value may make a share above the parent's with the other's old one: unlimited in between.
        (group / "cpu.cfs_quota_us").write_text("-1")
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))

    def lift_quota(self, place: str) -> None:
        """Let a place use all cores."""
        group = self.cpu / GROUP / place
        if self.version == 2:
            (group / "cpu.max").write_text("max")
        else:
            (group / "cpu.cfs_quota_us").write_text("-1")

    def set_memory(self, place: str, limit_bytes: int) -> None:
        """Kill what a place runs once it holds more than this."""
        group = self.memory / GROUP / place
        if self.version == 2:
            (group / "memory.max").write_text(str(limit_bytes))
            (group / "memory.swap.max").write_text("0")
        else:
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))

    def memory_limit(self, place: str) -> int:
        """The limit that `set_memory` set."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        return int((self.memory / GROUP / place / name).read_text())

    def held_bytes(self, place: str) -> int:
        """Memory that the processes of a place hold and cannot give back; file pages do not count."""
        name = "anon" if self.version == 2 else "total_rss"
        lines = (self.memory / GROUP / place / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == name)

    def kills(self, place: str) -> int:
        """How many processes the memory limit has killed there."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = (self.memory / GROUP / place / name).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def join(self, place: str) -> None:
        """Move this process, and so what it starts, into a place."""
        for root in self._roots():
            (root / GROUP / place / "cgroup.procs").write_text(str(os.getpid()))

    def processes(self, place: str | None = None) -> list[int]:
        """The processes in a place, or in all of them."""
        found: set[int] = set()
        for root in self._roots():
            for file in (root / GROUP).glob(f"{place or '*'}/cgroup.procs"):
                with suppress(OSError):
                    found |= {int(word) for word in file.read_text().split()}
        return sorted(found)

    def kill(self) -> None:
        """Kill every process of the lab and wait until they are gone."""
        end = time.monotonic() + END_S
        while (alive := self.processes()) and time.monotonic() < end:
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    def remove(self) -> None:
        """Kill what runs in the groups, and remove them."""
        self.kill()
        for root in self._roots():
            group = root / GROUP
            for folder in [*(entry for entry in group.glob("*") if entry.is_dir()), group]:
                _remove(folder)

    def found(self) -> list[Path]:
        """The groups of a lab that are there."""
        return [root / GROUP for root in self._roots() if (root / GROUP).exists()]

    def _roots(self) -> list[Path]:
        return list(dict.fromkeys([self.cpu, self.memory]))


def _remove(folder: Path) -> None:
    # A group stays busy for a moment after its last process.
    end = time.monotonic() + END_S
    while folder.exists():
        with suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > end:
            return
        time.sleep(0.02)
