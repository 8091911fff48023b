"""Clocks and scales: paired times, quantiles, a process's peak memory, a process of one's own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

WARM_UPS = 2


@dataclass
class Times:
    """One call's seconds, a pair for each round: by the clock on the wall, and of this process's processors."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def paired(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Time each call, by name: all are called once a round, one after another, so that they share the weather."""
    for _ in range(WARM_UPS):
        for call in calls.values():
            call()
    times = {name: Times() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            call()
            times[name].wall_s.append(time.perf_counter() - wall_s)
            times[name].cpu_s.append(time.process_time() - cpu_s)
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The quotient of each pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    fifths = quantiles(values, n=10, method="inclusive")
    return {"p20": fifths[1], "p50": fifths[4], "p80": fifths[7]}


def reset_peak() -> int:
    """Forget this process's peak memory; return what it holds now, in bytes. Linux only."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most that this process has held since `reset_peak`."""
    return _status_bytes("VmHWM")


def isolated(function: Callable[..., Any], *arguments: object, threads: int = 1) -> Any:
    """The result of a function in a fresh process with its number of compute threads.

    Args:
        function: of a module that can be imported; it and its arguments are sent to the process.
        arguments: its arguments.
        threads: for torch and the libraries under it.
    """
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))  # read when torch starts
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
