"""Where a rank's time went, and the trace that shows it: what `infer` and `bench` print and write.

compute   wall time of the passes less what was waited
wire      what the sent bytes take on their links, hidden or not, where a profile says how fast they are
exposed   waited with nothing else to do
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgempi.cluster.profile import ClusterProfile
from edgempi.comm import World
from edgempi.comm.timeline import collect_timeline
from edgempi.config.files import write_atomic
from edgempi.errors import UserError


def trace_path(named: str | None) -> str | None:
    """The absolute path of `task.trace`, so that a rank which works elsewhere writes the same file.

    Raises:
        UserError: its folder is missing or not writable.
    """
    if named is None:
        return None
    path = Path(named).expanduser().absolute()
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(
            "task.trace", value=named, rule="it is a file, in a folder that is there and writable",
            remedy="Name one, such as task.trace=trace.json",
        )  # fmt: skip
    return str(path)


def write_trace(world: World, path: str | None, names: Sequence[str]) -> None:
    """Write what the ranks have recorded, where a trace was asked for. Collective: every rank.

    Args:
        world: all ranks.
        path: of the file, written by rank 0; None: nobody asked.
        names: what to call each rank.
    """
    if path is None:
        return
    timeline = collect_timeline(world, names)
    if timeline is not None:
        write_atomic(path, json.dumps(timeline) + "\n")


def rank_times(world: World, passes_s: float, profile: ClusterProfile) -> dict[str, float | None]:
    """This rank's seconds since its counters were reset, in JSON types.

    Args:
        world: all ranks.
        passes_s: wall time of the passes that were counted.
        profile: knows the links, where they were measured.

    Returns:
        `passes_s`, `compute_s` and `wire_s`, which is None where no link is known.
    """
    traffic = world.traffic
    waited_s = sum(traffic.waited_s.values())
    wire_s = None
    if profile.links:
        wire_s = sum(8 * nbytes / profile.link(world.rank, to).bits_per_s for to, nbytes in traffic.bytes_to.items())
    return {"passes_s": passes_s, "compute_s": max(0.0, passes_s - waited_s), "wire_s": wire_s}


def time_cells(ranks: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table and each rank's cells, from `rank_times` and `waited_s`; what nobody knows is left out."""
    keys = {"compute": "compute_s", "wire": "wire_s", "exposed": "waited_s"}
    shown = {column: key for column, key in keys.items() if all(rank[key] is not None for rank in ranks)}
    cells = []
    for rank in ranks:
        whole_s = rank["passes_s"] or 1.0
        cells.append([f"{rank[key]:.2f} s {100 * rank[key] / whole_s:.0f} %" for key in shown.values()])
    return list(shown), cells
