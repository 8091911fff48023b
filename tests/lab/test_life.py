"""A lab that is up: its devices are machines of their own, and it serves jobs one at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgempi.config.load import compose
from edgempi.lab import check
from edgempi.lab.session import place_for
from lab.emulated import edgempi

pytestmark = pytest.mark.mpi


def test_devices_are_machines_of_their_own(lab: tuple[str, ...], tmp_path: Path) -> None:
    script = "hostname; ip -o -4 address show dev eth0; ls /dev/shm; cat /proc/self/cgroup; getent hosts nano-m2"
    done = edgempi(tmp_path, "run", *lab, "task.device=nano-m1", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "nano-m1\n" in done.stdout and "10.77.0.2/24" in done.stdout
    assert "/edgempi-lab/nano-m1" in done.stdout
    assert "10.77.0.3" in done.stdout.splitlines()[-1]


def test_a_command_runs_as_ranks(lab: tuple[str, ...], tmp_path: Path) -> None:
    done = edgempi(tmp_path, "run", *lab, "--", "sh", "-c", "echo $(hostname) '$HOME' $1", "sh", "a b")
    assert sorted(done.stdout.splitlines()) == [f"nano-m{n} $HOME a b" for n in range(3)], done.stderr
    assert edgempi(tmp_path, "run", *lab, "--", "false").returncode == 1


def test_a_lab_that_is_up_stays_as_it_is(lab: tuple[str, ...], tmp_path: Path) -> None:
    up = json.loads(edgempi(tmp_path, "status", "--json").stdout)["lab"]
    again = edgempi(tmp_path, "up", "--json", *lab)
    assert json.loads(again.stdout)["lab"] == up, again.stderr
    for words in (["up", "cluster=lab_a"], ["run", *lab, "cluster.lab.time_scale=1", "--", "true"]):
        refused = edgempi(tmp_path, *words)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1 and "edgempi lab down, first" in refused.stderr


def test_one_job_at_a_time(lab: tuple[str, ...], tmp_path: Path) -> None:
    with place_for(compose(list(lab)).cluster, "test"):
        for words in (["run", *lab, "--", "true"], ["down"]):
            refused = edgempi(tmp_path, *words)
            assert refused.returncode == 2
            assert f"in use by process {os.getpid()} (edgempi test)" in refused.stderr


def test_messages_are_on_the_wire_and_memory_is_limited(lab: tuple[str, ...]) -> None:
    cluster = compose(list(lab)).cluster
    with place_for(cluster, "test") as place:
        assert place.lab is not None and place.lab.lan.link_bits_per_s is not None
        ring = check.ring_under_load(cluster, place, place.lab.lan.link_bits_per_s)
        memory = check.memory_limits(place)
    seen = [finding for finding in ring if finding.unit == "MB"]
    assert len(seen) == len(memory) == 3
    assert all(finding.fine for finding in seen), seen
    assert all(finding.fine for finding in memory), memory
