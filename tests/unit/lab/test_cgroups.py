"""Both versions of the kernel's interface over a folder; the kernel's own is met in tests/lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.lab.cgroups import GROUP, Cgroups


def test_version_1_is_found_by_its_controllers() -> None:
    mounts = "cgroup /c/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /c/memory cgroup rw,memory 0 0\nx /y z rw 0 0"
    assert Cgroups.of_machine(mounts) == Cgroups(1, Path("/c/cpu,cpuacct"), Path("/c/memory"))


def test_version_2_is_found_where_it_has_both_controllers(tmp_path: Path) -> None:
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0"
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert Cgroups.of_machine(mounts) == Cgroups(2, tmp_path, tmp_path)
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    with pytest.raises(UserError, match="no control groups for cpu and memory"):
        Cgroups.of_machine(mounts)


def test_limits_of_version_1(tmp_path: Path) -> None:
    groups = Cgroups(1, tmp_path / "cpu", tmp_path / "memory")
    _roots(groups)
    groups.create(["pi"])
    groups.set_quota("pi", 0.3)
    groups.set_memory("pi", 12345)
    cpu, memory = groups.cpu / GROUP / "pi", groups.memory / GROUP / "pi"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "1000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "3334"
    assert groups.memory_limit("pi") == int((memory / "memory.limit_in_bytes").read_text()) == 12345
    (memory / "memory.stat").write_text("rss 5\ntotal_rss 7\ntotal_cache 9\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert (groups.held_bytes("pi"), groups.kills("pi")) == (7, 2)


def test_limits_of_version_2(tmp_path: Path) -> None:
    groups = Cgroups(2, tmp_path, tmp_path)
    groups.create(["pi"])
    groups.set_quota("pi", 1.25)
    groups.set_memory("pi", 12345)
    place = tmp_path / GROUP / "pi"
    assert (tmp_path / GROUP / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (place / "cpu.max").read_text() == "2500 2000"
    assert (place / "memory.max").read_text() == "12345"
    assert (place / "memory.swap.max").read_text() == "0"
    (place / "memory.stat").write_text("anon 7\nfile 9\n")
    (place / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert (groups.held_bytes("pi"), groups.kills("pi")) == (7, 2)


def test_processes_of_one_place_and_of_all(tmp_path: Path) -> None:
    groups = Cgroups(1, tmp_path / "cpu", tmp_path / "memory")
    _roots(groups)
    groups.create(["pi", "pc"])
    (groups.cpu / GROUP / "pi" / "cgroup.procs").write_text("12\n13\n")
    (groups.memory / GROUP / "pc" / "cgroup.procs").write_text("14\n")
    assert groups.processes("pi") == [12, 13]
    assert groups.processes() == [12, 13, 14]
    assert len(groups.found()) == 2


def test_groups_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="writable control groups"):
        Cgroups(1, tmp_path / "nowhere", tmp_path / "nowhere").create(["pi"])


def _roots(groups: Cgroups) -> None:
    groups.cpu.mkdir()
    groups.memory.mkdir()
