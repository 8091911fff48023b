from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.lab import state
from edgempi.lab.layout import LabDevice, Lan
from edgempi.lab.state import LabState

LAN = Lan((LabDevice("pi", "10.0.0.1", 1e9, None),), 1e8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "FOLDER", tmp_path / "run")
    for name in ("STATE", "LOCK", "HOSTS", "AGENT"):
        monkeypatch.setattr(state, name, tmp_path / "run" / name.lower())
    return tmp_path / "run"


def test_one_at_a_time_and_who() -> None:
    assert state.holder() is None
    with state.exclusive("infer"):
        mine = f"process {os.getpid()} (edgempi infer)"
        assert state.holder() == mine
        with pytest.raises(UserError, match="in use by process"), state.exclusive("lab up"):
            pass
        assert state.holder() == mine
    assert state.holder() is None


def test_the_lock_of_a_killed_process_is_free() -> None:
    program = f"""
import os, signal, pathlib
from edgempi.lab import state
state.FOLDER, state.LOCK = pathlib.Path({str(state.FOLDER)!r}), pathlib.Path({str(state.LOCK)!r})
with state.exclusive("infer"):
    print(state.holder())
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    with state.exclusive("lab up"):
        pass


def test_what_is_up_survives(folder: Path) -> None:
    assert state.read_state() is None
    folder.mkdir()
    up = LabState(LAN, kept=True, full_flops=2e9, baseline_bytes=7, cores={"pi": 0.5}, flops={"pi": 1e9})
    state.write_state(up)
    assert state.read_state() == up
    state.forget()
    assert state.read_state() is None


@pytest.mark.parametrize("text", ["", "{}", '{"lan": 3}', "[]"])
def test_a_damaged_file_is_no_lab(folder: Path, text: str) -> None:
    folder.mkdir()
    state.STATE.write_text(text)
    assert state.read_state() is None
