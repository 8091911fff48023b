"""`edgempi doctor`: what every host is, how the links are, and where the hosts disagree."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from edgempi.comm import World
from edgempi.comm.probe import clock_offsets, links
from edgempi.config.schema import Config
from edgempi.profiling.host import disagreements, host_facts
from edgempi.tasks import Job
from edgempi.tasks.tables import size, table

LARGEST_CLOCK_OFFSET_S = 1.0
"""Clocks further apart make logs and traces of several hosts hard to lay side by side."""
LEAST_FREE_BYTES = 500e6


def prepare(config: Config) -> dict[str, Any]:
    """Nothing to prepare: the hosts are asked, not the configuration."""
    return {}


def run(job: Job, world: World) -> dict[str, Any]:
    """Ask every rank, then measure every pair."""
    from edgempi.comm.mpi import library_version

    names = list(job.config.cluster.named_devices())
    facts = world.all_gather_json({"device": names[world.rank], **host_facts(world.host, library_version())})
    pairs = links(world)
    offsets = clock_offsets(world)
    for fact, offset in zip(facts, offsets, strict=True):
        fact["clock_offset_s"] = offset
    return {"hosts": facts, "links": pairs, "problems": disagreements(facts) + _warnings(facts)}


def report(result: dict[str, Any], console: Console) -> None:
    """The hosts, the links, the problems."""
    hosts = result["hosts"]
    columns = ["rank", "device", "host", "cores", "threads", "free memory", "clock offset", "processor"]
    rows = [
        [
            str(rank), h["device"], h["host"], str(h["cores"]), str(h["threads"]), size(h["free_bytes"]),
            f"{h['clock_offset_s'] * 1e3:+.2f} ms", f"{h['processor']} ({' '.join(h['features']) or 'plain'})",
        ]
        for rank, h in enumerate(hosts)
    ]  # fmt: skip
    console.print(table("Hosts", columns, rows, words=3))
    packages = ("edgempi", "python", "torch", "transformers", "mpi4py", "numpy", "safetensors", "byte_order", "mpi")
    versions = [[package, *dict.fromkeys(str(h[package]) for h in hosts)] for package in packages]
    width = max(map(len, versions))
    headings = ["package", "version", *(f"also ({i})" for i in range(2, width))]
    console.print(table("Versions", headings, [row + [""] * (width - len(row)) for row in versions], words=width))
    if result["links"]:
        rows = [
            [f"{p['a']} - {p['b']}", f"{p['latency_s'] * 1e6:.0f} us", f"{p['bits_per_s'] / 1e6:,.0f} Mbit/s"]
            for p in result["links"]
        ]
        console.print(table("Links (each pair alone)", ["ranks", "latency", "bandwidth"], rows))
    for problem in result["problems"]:
        console.print(f"PROBLEM: {problem}", markup=False)
    if not result["problems"]:
        console.print("No disagreements: the hosts can work together.")


def FAILED(result: dict[str, Any]) -> bool:  # noqa: N802 - the task protocol's name
    """Whether something stands in the way."""
    return bool(result["problems"])


def _warnings(facts: list[dict[str, Any]]) -> list[str]:
    found = []
    for rank, fact in enumerate(facts):
        who = f"rank {rank} on {fact['host']}"
        if abs(fact["clock_offset_s"]) > LARGEST_CLOCK_OFFSET_S:
            found.append(f"the clock of {who} is {fact['clock_offset_s']:+.1f} s off rank 0's; switch on NTP there")
        if fact["free_bytes"] < LEAST_FREE_BYTES:
            found.append(f"{who} has {size(fact['free_bytes'])} of memory free; close what else runs there")
    return found
