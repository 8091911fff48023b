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
from lab.emulated import LAB, Edgempi

pytestmark = pytest.mark.mpi


def test_a_killed_owner_leaves_remains_that_are_removed(machine: None, edgempi_lab: Edgempi, tmp_path: Path) -> None:
    words = ["run", *LAB, "task.device=nano-m2", "--", "sh", "-c", "echo up; sleep 60"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgempi", "lab", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "up\n"
        owner.send_signal(signal.SIGKILL)
    assert Cgroups.of_machine().processes("nano-m2")
    said = edgempi_lab("status", "--json")
    assert any("edgempi-nano-m2" in name for name in json.loads(said.out)["remains"])
    assert edgempi_lab("down").out == "The lab is down.\n"
    assert find_remains() == []
    assert edgempi_lab("down").out == "No lab was up.\n"


def test_a_lab_that_this_machine_cannot_be_leaves_nothing(machine: None, edgempi_lab: Edgempi) -> None:
    refused = edgempi_lab("up", *LAB, "cluster.lab.time_scale=100")
    assert refused.status == 2
    assert "cluster.lab.time_scale" in refused.err and "Divide it by" in refused.err
    assert find_remains() == []
