"""A lab whose owner ends in any way goes without a trace; first by name, before the tests that keep one up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgempi.lab.cgroups import Cgroups
from edgempi.lab.session import find_remains
from lab.emulated import LAB, edgempi

pytestmark = pytest.mark.mpi


def test_a_killed_owner_leaves_remains_that_are_removed(machine: None, tmp_path: Path) -> None:
    words = ["run", *LAB, "task.device=nano-m2", "--", "sh", "-c", "echo up; sleep 60"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgempi", "lab", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGKILL)
    assert Cgroups.of_machine().processes("nano-m2")
    said = edgempi(tmp_path, "status", "--json")
    assert any("edgempi-nano-m2" in name for name in json.loads(said.stdout)["remains"])
    assert edgempi(tmp_path, "down").stdout == "The lab is down.\n"
    assert find_remains() == []
    assert edgempi(tmp_path, "down").stdout == "No lab was up.\n"


def test_a_lab_that_this_machine_cannot_be_leaves_nothing(machine: None, tmp_path: Path) -> None:
    refused = edgempi(tmp_path, "up", *LAB, "cluster.lab.time_scale=100")
    assert refused.returncode == 2
    assert "cluster.lab.time_scale" in refused.stderr and "Divide it by" in refused.stderr
    assert find_remains() == []


def test_a_command_needs_a_lab_and_a_device_of_it(machine: None, tmp_path: Path) -> None:
    for words, said in (
        (["up"], "Add cluster=lab_a"),
        (["run", *LAB], "lab run runs one"),
        (["run", *LAB, "task.device=pi", "--", "true"], "one of nano-m0, nano-m1, nano-m2"),
        (["down", "--", "true"], "lab down takes none"),
    ):
        refused = edgempi(tmp_path, *words)
        assert refused.returncode == 2
        assert said in refused.stderr and len(refused.stderr.splitlines()) == 1, refused.stderr
