"""Start ranks, and end them when time is up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgempi.cluster.mpirun import Ranks, find_mpirun, launch_command

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a job ended; `status` is None where its time was up."""

    status: int | None
    out: str
    err: str
    seconds: float


def run_ranks(ranks: int, module: str, words: Sequence[str], timeout_s: float) -> Ended:
    """Run `python -m MODULE WORDS` on local ranks, with the tests' own modules importable."""
    described = Ranks(["localhost"] * ranks, root=os.geteuid() == 0)
    command = launch_command(find_mpirun(), described, [sys.executable, "-m", module, *words])
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start = time.monotonic()
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        status: int | None = None
        try:
            out, err = process.communicate(timeout=timeout_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            _kill(process)
            out, err = process.communicate()
        except BaseException:  # pytest's own limit, or a person at the keyboard
            _kill(process)
            raise
    return Ended(status, out, err, time.monotonic() - start)


def _kill(process: subprocess.Popen[str]) -> None:
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        member.kill()
