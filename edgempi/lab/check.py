"""Prove that the emulation is honest: links, speeds, a ring under load, the bytes on the wire, the memory limit.

Each check measures with all devices busy at once and holds the figure to what the lab promises.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgempi.cluster.mpirun import find_mpirun, launch_command
from edgempi.config.cluster import ClusterConfig
from edgempi.lab import ring
from edgempi.lab.calibrate import agent_words, probes
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.layout import Lan
from edgempi.lab.session import Place

FRAME = 1514 / 1448
"""Bytes on the wire per byte of payload: Ethernet, IP and TCP with time stamps."""
LINK_S, SPEED_S = 3.0, 3.0
LINK_ALLOWED, SPEED_ALLOWED, RING_ALLOWED = 0.05, 0.05, 0.10
MOST_PER_PAYLOAD = 1.10
"""Of the bytes at the interface per byte that ranks count: headers, acknowledgements, and nothing else."""
PROGRAM_LIMIT_S = 120.0
OVER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Finding:
    """One figure.

    Args:
        what: the property.
        host: the device.
        nominal: what the lab promises, in `unit`.
        measured: what was found.
        unit: of both.
        allowed: how far apart they may be, in words.
        fine: whether they are.
    """

    what: str
    host: str
    nominal: float
    measured: float
    unit: str
    allowed: str
    fine: bool


def check_lab(cluster: ClusterConfig, place: Place) -> dict[str, Any]:
    """All findings, and advice where the ring falls short; takes about half a minute.

    Args:
        cluster: with `lab`.
        place: the lab that is up for it.
    """
    assert place.lab is not None and cluster.lab is not None
    lan = place.lab.lan
    findings = [*_links(lan), *_speeds(lan)]
    advice: list[str] = []
    if len(lan.devices) > 1 and lan.link_bits_per_s is not None:
        under_load = ring_under_load(cluster, place, lan.link_bits_per_s)
        findings += under_load
        worst = max(f.measured / f.nominal for f in under_load if f.unit == "ms")
        if worst > 1 + RING_ALLOWED:
            slower = cluster.lab.time_scale * (1 + RING_ALLOWED / 2) / worst
            advice.append(f"Lower speed and link together: cluster.lab.time_scale={slower:.2g}")
    findings += memory_limits(place)
    return {"findings": [asdict(finding) for finding in findings], "advice": advice}


def _links(lan: Lan) -> list[Finding]:
    """Every device sends to the next one at once, so every link carries both directions."""
    if lan.link_bits_per_s is None or len(lan.devices) < 2:
        return []
    following = [*lan.devices[1:], lan.devices[0]]
    processes = [
        subprocess.Popen(
            agent_words(device.host, _module("edgempi.lab.wire", device.address, peer.address, str(LINK_S))),
            stdout=subprocess.PIPE, text=True,
        )
        for device, peer in zip(lan.devices, following, strict=True)
    ]  # fmt: skip
    said = [process.communicate(timeout=PROGRAM_LIMIT_S)[0] for process in processes]
    findings = []
    for device, text in zip(lan.devices, said, strict=True):
        measured = float(text or 0) * FRAME
        fine = abs(measured / lan.link_bits_per_s - 1) <= LINK_ALLOWED
        nominal = lan.link_bits_per_s / 1e6
        findings.append(
            Finding("link, both ways", device.host, nominal, measured / 1e6, "Mbit/s", _within(LINK_ALLOWED), fine)
        )
    return findings


def _speeds(lan: Lan) -> list[Finding]:
    with probes(lan.hosts) as asked:
        asked.rates(lan.hosts, 0.1)  # packs the weights
        measured = asked.rates(lan.hosts, SPEED_S)
    return [
        Finding(
            "products, all at once", device.host, device.flops / 1e9, measured[device.host] / 1e9, "GFLOP/s",
            _within(SPEED_ALLOWED), abs(measured[device.host] / device.flops - 1) <= SPEED_ALLOWED,
        )
        for device in lan.devices
    ]  # fmt: skip


def ring_under_load(cluster: ClusterConfig, place: Place, bits_per_s: float) -> list[Finding]:
    bound_s = ring.TILE_BYTES * 8 * FRAME / bits_per_s
    program = _module("edgempi.lab.ring", str(bound_s))
    launch = launch_command(find_mpirun(), place.ranks(cluster), program)
    done = subprocess.run(place.command(launch), stdout=subprocess.PIPE, text=True, timeout=PROGRAM_LIMIT_S, check=True)
    found = json.loads(done.stdout)
    steps = [
        Finding(
            "ring while computing, a tile", one["host"], bound_s * 1e3, one["step_s"] * 1e3, "ms",
            f"at most +{RING_ALLOWED:.0%}", one["step_s"] <= bound_s * (1 + RING_ALLOWED),
        )
        for one in found
    ]  # fmt: skip
    bytes_seen = [
        Finding(
            "sent by MPI, seen on the wire", one["host"], one["payload_bytes"] / 1e6, one["wire_bytes"] / 1e6, "MB",
            f"+0 to {MOST_PER_PAYLOAD - 1:.0%}", 1 <= one["wire_bytes"] / one["payload_bytes"] <= MOST_PER_PAYLOAD,
        )
        for one in found
    ]  # fmt: skip
    return [*steps, *bytes_seen]


def memory_limits(place: Place) -> list[Finding]:
    """On each device a program that wants a little more than there is; it must die, and nothing else with it."""
    assert place.lab is not None
    groups = Cgroups.of_machine()
    findings = []
    for device in place.lab.lan.devices:
        if device.memory_bytes is None:
            continue
        limit = groups.memory_limit(device.host)
        before = {host: groups.kills(host) for host in place.lab.lan.hosts}
        # Written to, page by page: memory that is only asked for is not there yet.
        program = [sys.executable, "-c", f"bytearray({limit + OVER_BYTES}); print('lives')"]
        subprocess.run(
            agent_words(device.host, program), timeout=PROGRAM_LIMIT_S, check=False, stdout=subprocess.DEVNULL
        )
        killed = {host: groups.kills(host) - count for host, count in before.items()}
        fine = killed.pop(device.host) > 0 and not any(killed.values())
        findings.append(
            Finding(
                "killed above its memory", device.host, limit / 1e6, (limit + OVER_BYTES) / 1e6, "MB", "it alone", fine
            )
        )
    return findings


def _module(name: str, *words: str) -> Sequence[str]:
    return [sys.executable, "-m", name, *words]


def _within(share: float) -> str:
    return f"within {share:.0%}"
