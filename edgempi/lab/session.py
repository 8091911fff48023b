"""Bring a lab up, lend it to a job, take it down: always by whoever holds the machine's lock (`state.exclusive`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from edgempi.cluster.mpirun import Ranks
from edgempi.cluster.start import signals_raise
from edgempi.config.cluster import ClusterConfig
from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.lab import network, state
from edgempi.lab.calibrate import Calibration, agent_words, calibrate, recalibrate
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.layout import HEAD, Lan, describe
from edgempi.lab.metronome import metronome
from edgempi.lab.state import LabState
from edgempi.lab.tools import check_tools

LAUNCHER_BYTES = 16 * 2**20
"""What the launcher's processes on a device (3 MB were seen) and the kernel may take of its memory, beside the rank."""


@dataclass(frozen=True)
class Place:
    """Where a job's ranks run: on real hosts, or in the lab.

    Args:
        lab: the lab that is lent, or None.
        killed: how many processes each of its devices had killed for want of memory, before the job.
    """

    lab: LabState | None = None
    killed: Mapping[str, int] = field(default_factory=dict)

    def ranks(self, cluster: ClusterConfig) -> Ranks:
        """What to start: one rank per device."""
        return Ranks(
            hosts=[device.host for device in cluster.named_devices().values()],
            network=cluster.network,
            threads=cluster.threads_per_rank,
            root=os.geteuid() == 0,
            agent=None if self.lab is None else str(state.AGENT),
        )

    def command(self, launch: Sequence[str]) -> list[str]:
        """The argv of a launcher, to be run where it can reach the devices."""
        return list(launch) if self.lab is None else agent_words(HEAD, launch)

    def out_of_memory(self) -> list[str]:
        """A sentence for each device on which the job was killed because it went over the device's memory."""
        groups = None if self.lab is None else Cgroups.of_machine()
        return [
            f"{host} ran out of memory: a process went over {groups.memory_limit(host) / 1e6:.0f} MB and was killed"
            for host, before in self.killed.items()
            if groups is not None and groups.kills(host) > before
        ]

    def end(self) -> None:
        """Kill what a job may have left behind on the devices."""
        if self.lab is not None:
            Cgroups.of_machine().kill()


@contextmanager
def place_for(cluster: ClusterConfig, what: str) -> Iterator[Place]:
    """Where this cluster's ranks run; an emulated one is brought up where it is not, and then taken down afterwards.

    Args:
        cluster: its `lab` says whether it is emulated.
        what: the task, for the message to whoever wants the lab meanwhile.
    """
    if cluster.lab is None:
        yield Place()
        return
    lan = describe(cluster)
    with hold(what):
        up = state.read_state()
        if up is not None and up.kept and _is_whole(up):
            _check_same(up.lan, lan)
        else:
            up = bring_up(lan, kept=False)
        groups = Cgroups.of_machine()
        place = Place(up, {host: groups.kills(host) for host in lan.hosts})
        place.end()  # whatever a job left whose parent was killed
        try:
            with metronome():
                yield place
        finally:
            place.end()
            if not up.kept:
                tear_down()


@contextmanager
def hold(what: str) -> Iterator[None]:
    """Hold the machine's lab, and let a signal to stop raise, so that what was begun is undone."""
    check_tools()
    with state.exclusive(what), signals_raise():
        yield


def bring_up(lan: Lan, kept: bool) -> LabState:
    """Build a lab from nothing, after removing what is left of another one; the caller holds the lock.

    Args:
        lan: what to build.
        kept: whether it stays after this process.

    Raises:
        UserError: this machine does not allow it, or is too slow; nothing is left.
    """
    tear_down()
    groups = Cgroups.of_machine()
    built = LabState(lan, kept=False)
    try:
        # Written first: whoever finds it knows whose remains they are.
        state.write_state(built)
        write_atomic(state.HOSTS, lan.hosts_file)
        write_atomic(state.AGENT, f'#!/bin/sh\nexec {sys.executable} -m edgempi.lab.agent "$@"\n')
        state.AGENT.chmod(0o755)
        groups.create([HEAD, *lan.hosts])
        network.build(lan)
        with metronome():
            found = calibrate(lan, groups)
        for device in lan.devices:
            if device.memory_bytes is not None:
                limit = found.baseline_bytes + LAUNCHER_BYTES + device.memory_bytes
                groups.set_memory(device.host, limit)
        built = replace(built, kept=kept, **vars(found))
        state.write_state(built)
    except BaseException:
        tear_down()
        raise
    return built


def retune(up: LabState) -> tuple[dict[str, float], LabState]:
    """Measure what the devices of a lab show, then set their quotas anew; the caller holds the lock.

    Args:
        up: the lab, with no job in it.

    Returns:
        What each device showed first, as a share of its nominal rate, and the lab as it is now.
    """
    known = Calibration(up.full_flops, up.baseline_bytes, up.cores, up.flops)
    with metronome():
        found, tuned = recalibrate(up.lan, Cgroups.of_machine(), known)
    now = replace(up, **vars(tuned))
    state.write_state(now)
    return replace(up, flops=found).speeds, now


def tear_down() -> bool:
    """Remove a lab or its remains, with all that runs in it; whether there was any. The caller holds the lock."""
    there = bool(find_remains())
    groups = Cgroups.of_machine()
    groups.kill()
    network.remove()
    groups.remove()
    state.forget()
    return there


def find_remains() -> list[str]:
    """What of a lab is on this machine: namespaces, control groups, its state."""
    return [
        *(f"namespace {name}" for name in network.found_namespaces()),
        *map(str, Cgroups.of_machine().found()),
        *([str(state.STATE)] if state.STATE.exists() else []),
    ]


def _is_whole(up: LabState) -> bool:
    # Somebody may have deleted a namespace by hand.
    return {network.namespace(host) for host in up.lan.hosts} <= set(network.found_namespaces())


def _check_same(up: Lan, wanted: Lan) -> None:
    if up != wanted:
        raise UserError(
            "lab", value=f"up with {_words(up)}", rule=f"this job wants {_words(wanted)}",
            remedy="edgempi lab down, first; a job brings its lab up by itself",
        )  # fmt: skip


def _words(lan: Lan) -> str:
    link = "unshaped links" if lan.link_bits_per_s is None else f"{lan.link_bits_per_s / 1e6:g} Mbit/s"
    devices = ", ".join(
        f"{d.host} ({d.flops / 1e9:.3g} GFLOP/s, "
        f"{'no limit' if d.memory_bytes is None else f'{d.memory_bytes / 1e9:g} GB'})"
        for d in lan.devices
    )
    return f"{devices}, {link}"
