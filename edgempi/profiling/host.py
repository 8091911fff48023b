"""What a host is: versions, processor, memory; and what of it must be equal everywhere."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import edgempi

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "asimddp", "bf16", "sve")
"""Processor features that kernels care about, as the kernel's own list spells them."""
PACKAGES = ("torch", "transformers", "mpi4py", "numpy", "safetensors")
EQUAL = ("edgempi", "python", "torch", "mpi4py", "mpi", "byte_order")
"""What ranks must agree on: sums in other library versions may differ, other MPIs cannot talk."""


def host_facts(host: str, mpi: str) -> dict[str, Any]:
    """This host, in JSON types.

    Args:
        host: its name.
        mpi: what the MPI library says of itself.
    """
    name, features = _processor()
    return {
        "host": host,
        "edgempi": edgempi.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "mpi": mpi,
        "byte_order": sys.byteorder,
        "processor": name,
        "features": [feature for feature in FEATURES if feature in features],
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "free_bytes": psutil.virtual_memory().available,
    }


def disagreements(hosts: list[dict[str, Any]]) -> list[str]:
    """A sentence with its remedy for each fact that ranks must share and do not."""
    found = []
    for fact in EQUAL:
        groups: dict[Any, list[str]] = {}
        for rank, host in enumerate(hosts):
            groups.setdefault(host[fact], []).append(f"rank {rank} on {host['host']}")
        if len(groups) > 1:
            said = "; ".join(f"{value}: {', '.join(who)}" for value, who in groups.items())
            remedy = "use hosts of one byte order" if fact == "byte_order" else f"install one {fact} everywhere"
            found.append(f"{fact} differs ({said}); {remedy}")
    return found


def _processor() -> tuple[str, set[str]]:
    """The processor's name and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    features = facts.get("flags", facts.get("Features", ""))
    return facts.get("model name", platform.machine()), set(features.split())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
