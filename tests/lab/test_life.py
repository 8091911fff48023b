"""A lab that is up: its devices are machines of their own, and it serves jobs one at a time."""

from __future__ import annotations

import json
import os

import pytest

from edgempi.config.load import compose
from edgempi.lab import check
from edgempi.lab.session import place_for
from lab.emulated import Edgempi

pytestmark = pytest.mark.mpi


def test_devices_are_machines_of_their_own(lab: tuple[str, ...], edgempi_lab: Edgempi) -> None:
    script = "hostname; ip -o -4 address show dev eth0; ls /dev/shm; cat /proc/self/cgroup; getent hosts nano-m2"
    done = edgempi_lab("run", *lab, "task.device=nano-m1", "--", "sh", "-c", script)
    assert done.status == 0, done.err
    assert "nano-m1\n" in done.out and "10.77.0.2/24" in done.out
    assert "/edgempi-lab/nano-m1" in done.out
    assert "10.77.0.3" in done.out.splitlines()[-1]


def test_a_command_runs_as_ranks(lab: tuple[str, ...], edgempi_lab: Edgempi) -> None:
    done = edgempi_lab("run", *lab, "--", "sh", "-c", "echo $(hostname) '$HOME' $1", "sh", "a b")
    assert sorted(done.out.splitlines()) == [f"nano-m{n} $HOME a b" for n in range(3)], done.err
    assert edgempi_lab("run", *lab, "--", "false").status == 1


def test_a_lab_that_is_up_stays_as_it_is(lab: tuple[str, ...], edgempi_lab: Edgempi) -> None:
    up = json.loads(edgempi_lab("status", "--json").out)["lab"]
    again = edgempi_lab("up", "--json", *lab)
    assert json.loads(again.out)["lab"] == up, again.err
    for words in (["up", "cluster=lab_a"], ["run", *lab, "cluster.lab.time_scale=1", "--", "true"]):
        refused = edgempi_lab(*words)
        assert refused.status == 2
        assert len(refused.err.splitlines()) == 1 and "edgempi lab down, first" in refused.err


def test_one_job_at_a_time(lab: tuple[str, ...], edgempi_lab: Edgempi) -> None:
    with place_for(compose(list(lab)).cluster, "test"):
        for words in (["run", *lab, "--", "true"], ["down"]):
            refused = edgempi_lab(*words)
            assert refused.status == 2
            assert f"in use by process {os.getpid()} (edgempi test)" in refused.err


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
