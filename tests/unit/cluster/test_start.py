from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgempi.cluster.start import StoppedError, run_to_the_end

# A launcher whose rank outlives SIGTERM: what `_end` has to deal with.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
rank = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", rank], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def test_exit_status_and_standard_error_pass_through(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_to_the_end(["sh", "-c", "echo out; echo err >&2; exit 7"]) == 7
    assert capfd.readouterr() == ("out\n", "err\n")


def test_a_launcher_that_is_killed_has_a_shells_status() -> None:
    assert run_to_the_end(["sh", "-c", "kill -9 $$"]) == 137


def test_a_launcher_that_cannot_end_its_ranks_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgempi.cluster.start.GRACE_S", 0.3)
    start = time.monotonic()
    assert run_to_the_end(["sh", "-c", "echo '[rank 0 on pi] stuck' >&2; echo $$; exec sleep 600"]) == 1
    assert time.monotonic() - start < 10
    out, err = capfd.readouterr()
    assert err == "[rank 0 on pi] stuck\n"
    assert not psutil.pid_exists(int(out))


def test_a_launcher_that_ends_by_itself_keeps_its_status() -> None:
    assert run_to_the_end(["sh", "-c", "echo '[rank 0 on pi] stuck' >&2; exit 7"]) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_whole_family(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgempi.cluster.start.GRACE_S", 0.3)
    file = tmp_path / "pid"

    def interrupt() -> None:
        while not (file.is_file() and file.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(StoppedError) as caught:
        run_to_the_end([sys.executable, "-c", STUBBORN, str(file)])
    assert caught.value.status == 128 + number
    rank = int(file.read_text())
    assert not psutil.pid_exists(rank) or psutil.Process(rank).status() == psutil.STATUS_ZOMBIE
