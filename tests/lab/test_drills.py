"""What goes wrong in a home network, on purpose: each ends the job, names the culprit, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from edgempi.lab import network
from edgempi.lab.cgroups import Cgroups

pytestmark = pytest.mark.mpi

FAKES = Path(__file__).parents[1] / "fakes"
CULPRIT, HOST = 1, "nano-m1"
TIMEOUT_S = 4.0
END_S = TIMEOUT_S * 1.5 + 8.0
"""The bound of a wait, the roll call, and the launcher's grace; the rest is the machine's."""


def _kill(rank: psutil.Process) -> None:
    rank.send_signal(signal.SIGKILL)


def _freeze(rank: psutil.Process) -> None:
    rank.send_signal(signal.SIGSTOP)


def _cut(rank: psutil.Process) -> None:
    network.set_link(HOST, up=False)


@pytest.mark.parametrize(
    ("drill", "said"),
    [
        (_kill, (f"on node {HOST} exited on\nsignal 9 (Killed)", f"RUNNING AT {HOST}\n")),  # Open MPI's words, MPICH's
        (_freeze, (f"No word, 2.0 s later, from: rank {CULPRIT} on {HOST}\n",)),
        (_cut, (f"No word, 2.0 s later, from: rank {CULPRIT} on {HOST}\n",)),
    ],
)
def test_a_drill_names_the_culprit(
    lab: tuple[str, ...], tmp_path: Path, drill: Callable[[psutil.Process], None], said: tuple[str, ...]
) -> None:
    with _job(lab, tmp_path) as job:
        rank = next(p for p in map(psutil.Process, Cgroups.of_machine().processes(HOST)) if _is_rank(p))
        start = time.monotonic()
        drill(rank)
        try:
            out, complaint = job.communicate(timeout=END_S + 10)
        finally:
            network.set_link(HOST, up=True)
    assert time.monotonic() - start < END_S
    assert job.returncode not in (0, 2)
    assert any(words in out + complaint for words in said), complaint
    assert Cgroups.of_machine().processes() == []


@contextmanager
def _job(lab: tuple[str, ...], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A job whose ranks are all at work."""
    words = ["infer", "data.prompts=[work]", *lab]
    path = os.pathsep.join(filter(None, [str(FAKES), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "edgempi", *words], cwd=folder, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as job:  # fmt: skip
        watchdog = threading.Timer(90, job.kill)
        watchdog.start()
        try:
            assert job.stdout is not None
            at_work = 0
            while at_work < 3:
                line = job.stdout.readline()
                assert line, "the job ended before its ranks worked"
                at_work += "is at work" in line
            yield job
        finally:
            watchdog.cancel()
            job.kill()


def _is_rank(process: psutil.Process) -> bool:
    return "edgempi.worker" in process.cmdline() and not any("prted" in word for word in process.cmdline())
