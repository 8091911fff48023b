"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

FAKES = Path(__file__).parent / "fakes"

RunEdgempi = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_edgempi(tmp_path: Path) -> RunEdgempi:
    """A function that runs `edgempi WORDS` in a folder of its own, and ends what it started when time is up.

    `fakes=True` puts the tasks of tests/fakes in the place of the real ones; `launcher` stands before the command.
    """

    def run(
        *words: str,
        fakes: bool = False,
        launcher: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **(env or {})}
        if fakes:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FAKES), environment.get("PYTHONPATH")]))
        command = [*launcher, sys.executable, "-m", "edgempi", *words]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                    member.kill()
                pytest.fail(f"edgempi {' '.join(words)} took more than {timeout_s} s")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run
