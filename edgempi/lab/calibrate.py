"""Set the quotas so that every device shows its GEMM rate: measure cores without limits, then all devices at once."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread

from edgempi.errors import UserError
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.layout import Lan

FULL_S, THROTTLED_S = 0.5, 1.0
"""How long rates are measured: the second spans a hundred periods of the quota."""
PACK_S = 0.1
"""How long a probe is asked for first, so that it has packed its weights before rates count."""
START_S = 60.0
USABLE = 0.9
"""The share of the machine's processors that devices may take together; the rest is the kernel's and the launcher's."""
LEAST_SHARE = 0.01
"""Below this a quota's period is so long that a device stands still for most of a message."""
NEAR, CORRECTIONS = 0.02, 3
"""Quotas are corrected until rates are this near, but not more often: a busy machine would have no end."""
LARGEST_CORRECTION = 0.08
"""More than this is no matter of the quota: something else is using the processors."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found: see `LabState`."""

    full_flops: float
    baseline_bytes: int
    cores: dict[str, float]
    flops: dict[str, float]


def agent_words(host: str, command: Sequence[str]) -> list[str]:
    """The argv that runs a command in a place of the lab."""
    return [sys.executable, "-m", "edgempi.lab.agent", host, "exec " + shlex.join(command)]


def calibrate(lan: Lan, groups: Cgroups) -> Calibration:
    """Measure, set the quotas, correct them; raises `UserError` where this machine is too slow for the lab."""
    with probes(lan.hosts) as asked:
        baseline_bytes = max(groups.held_bytes(host) for host in lan.hosts)
        full_flops = _full(asked, lan)
        return _settle(asked, lan, groups, full_flops, baseline_bytes)


def recalibrate(lan: Lan, groups: Cgroups, known: Calibration) -> tuple[dict[str, float], Calibration]:
    """What the devices show under their quotas by now, and quotas that are right again.

    The speed of a machine's cores may change within minutes, where other machines share them.

    Args:
        lan: what is up, with no job in it.
        groups: of the machine.
        known: what the last calibration found.

    Returns:
        The rates found first, in FLOP/s, and the new calibration: the known one, where those are near.
    """
    try:
        for host in lan.hosts:
            groups.lift_quota(host)  # what a probe imports would take seconds under it
        with probes(lan.hosts) as asked:
            asked.rates(lan.hosts, PACK_S)
            for host, share in known.cores.items():
                groups.set_quota(host, share)
            found = asked.rates(lan.hosts, THROTTLED_S)
            if all(abs(found[device.host] / device.flops - 1) <= NEAR for device in lan.devices):
                return found, replace(known, flops=found)
            for host in lan.hosts:
                groups.lift_quota(host)
            return found, _settle(asked, lan, groups, _full(asked, lan), known.baseline_bytes)
    except BaseException:
        for host, share in known.cores.items():
            groups.set_quota(host, share)
        raise


def _full(asked: Probes, lan: Lan) -> float:
    """The rate of one core, in FLOP/s, while no quota is set."""
    # As many at once as there are cores, since cores that share a chip share its clock.
    alone = asked.rates(lan.hosts[: os.cpu_count() or 1], FULL_S)
    return sum(alone.values()) / len(alone)


def _settle(asked: Probes, lan: Lan, groups: Cgroups, full_flops: float, baseline_bytes: int) -> Calibration:
    cores = {device.host: device.flops / full_flops for device in lan.devices}
    expected = dict(cores)
    _check_room(cores, full_flops, lan)
    for host, share in cores.items():
        groups.set_quota(host, share)
    flops = asked.rates(lan.hosts, THROTTLED_S)
    for _ in range(CORRECTIONS):
        wanted = {device.host: device.flops / flops[device.host] for device in lan.devices}
        if all(abs(factor - 1) <= NEAR for factor in wanted.values()):
            break
        for host, factor in wanted.items():
            least, most = (expected[host] * (1 + sign * LARGEST_CORRECTION) for sign in (-1, 1))
            cores[host] = min(max(cores[host] * factor, least), most)
            groups.set_quota(host, cores[host])
        flops = asked.rates(lan.hosts, THROTTLED_S)
    return Calibration(full_flops, baseline_bytes, cores, flops)


class Probes:
    """Probe processes on several devices, that can be asked at the same time."""

    def __init__(self, processes: Mapping[str, subprocess.Popen[str]]) -> None:
        self._processes = processes

    def rates(self, hosts: Sequence[str], seconds: float) -> dict[str, float]:
        """The GEMM rates of these devices, in FLOP/s, measured at the same time."""
        for host in hosts:
            self._say(host, str(seconds))
        return {host: float(self.answer(host)) for host in hosts}

    def answer(self, host: str) -> str:
        """The next line of a probe; raises `UserError` where it has ended."""
        process = self._processes[host]
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UserError(
                f"lab: probe on {host}", value=f"ended with status {process.wait()}", rule="it measures the device",
                remedy=f"See what it said above; or try edgempi lab run task.device={host} -- true",
            )  # fmt: skip
        return line.strip()

    def _say(self, host: str, line: str) -> None:
        pipe = self._processes[host].stdin
        assert pipe is not None
        pipe.write(line + "\n")
        pipe.flush()


@contextmanager
def probes(hosts: Sequence[str]) -> Iterator[Probes]:
    """A ready probe on each device, ended afterwards; none of them may take longer than a minute to start."""
    command = [sys.executable, "-m", "edgempi.lab.probe"]
    processes = {
        host: subprocess.Popen(
            agent_words(host, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        for host in hosts
    }
    try:
        asked = Probes(processes)
        waits = [Thread(target=asked.answer, args=(host,), daemon=True) for host in hosts]
        for wait in waits:
            wait.start()
        end = time.monotonic() + START_S
        for wait in waits:
            wait.join(max(0.0, end - time.monotonic()))
        late = [host for host, wait in zip(hosts, waits, strict=True) if wait.is_alive()]
        if late:
            raise UserError(
                f"lab: probe on {late[0]}", value=f"not ready after {START_S:.0f} s",
                rule="it imports what a rank imports, at the device's speed", remedy="Raise cluster.lab.time_scale",
            )  # fmt: skip
        yield asked
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _check_room(cores: Mapping[str, float], full_flops: float, lan: Lan) -> None:
    idle = [host for host, share in cores.items() if share < LEAST_SHARE]
    if idle:
        raise UserError(
            "device speed", value=f"{idle[0]}: {cores[idle[0]]:.4f} of a core",
            rule=f"a device of the lab takes at least {LEAST_SHARE} of one", remedy="Raise its speed, or time_scale",
        )  # fmt: skip
    room = USABLE * (os.cpu_count() or 1)
    slowest = max(1.0, max(cores.values()) / USABLE, sum(cores.values()) / room)
    if slowest > 1:
        total = sum(device.flops for device in lan.devices)
        raise UserError(
            "cluster.lab.time_scale", value=f"the devices do {total / 1e9:.0f} GFLOP/s together",
            rule=f"this machine has {os.cpu_count()} cores of {full_flops / 1e9:.0f}, a device is at most one of them, "
            "and a tenth stays free", remedy=f"Divide it by {slowest:.2f} or more",
        )  # fmt: skip
