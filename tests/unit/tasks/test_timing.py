"""Where a rank's time went, from counters and links."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.cluster.profile import ClusterProfile, Device, Link
from edgempi.comm import World
from edgempi.errors import UserError
from edgempi.tasks.timing import rank_times, time_cells, trace_path
from unit.comm.threads import on_ranks

DEVICES = tuple(Device(name, "host") for name in ("tv", "router", "phone"))
LINKS = tuple(Link(a, b, 0.001, 1e6 * (1 + b)) for a in range(3) for b in range(3) if a != b)


def _counted(world: World) -> dict[str, float | None]:
    world.traffic.reset()
    if world.rank == 0:
        with world.traffic.within("dec.0"):
            world.traffic.sent(1000, 1)
            world.traffic.sent(250, 1)
            world.traffic.sent(3000, 2)
            world.traffic.waited(0.5)
    return rank_times(world, 2.0, ClusterProfile(DEVICES, LINKS))


def test_wire_time_is_of_each_receivers_link() -> None:
    first, second, _ = on_ranks(3, _counted)
    assert first == {"passes_s": 2.0, "compute_s": 1.5, "wire_s": pytest.approx(8 * 1250 / 2e6 + 8 * 3000 / 3e6)}
    assert second == {"passes_s": 2.0, "compute_s": 2.0, "wire_s": 0}


def test_a_rank_that_waited_longer_than_it_ran() -> None:
    """Counters and clock are read one after the other, so the one may pass the other by a hair."""

    def run(world: World) -> float | None:
        world.traffic.reset()
        world.traffic.waited(1.0001)
        return rank_times(world, 1.0, ClusterProfile(DEVICES[:1]))["compute_s"]

    assert on_ranks(1, run) == [0.0]


def test_the_table_leaves_out_what_nobody_knows() -> None:
    rank = {"passes_s": 2.0, "compute_s": 1.5, "waited_s": 0.5}
    assert time_cells([{**rank, "wire_s": None}]) == (["compute", "exposed"], [["1.50 s 75 %", "0.50 s 25 %"]])
    columns, (cells,) = time_cells([{**rank, "wire_s": 0.25}])
    assert dict(zip(columns, cells, strict=True)) == {
        "compute": "1.50 s 75 %",
        "wire": "0.25 s 12 %",
        "exposed": "0.50 s 25 %",
    }


def test_a_trace_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trace_path(None) is None
    assert trace_path("trace.json") == str(tmp_path / "trace.json")
    for odd in (tmp_path, tmp_path / "none" / "trace.json"):
        with pytest.raises(UserError, match=r"task\.trace: .*; it is a file, in a folder that is there and writable"):
            trace_path(str(odd))
