"""A job's whole way through the parent, mpirun and the ranks, and every way in which it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgempi.cluster.mpirun import Ranks, find_mpirun, launch_command

pytestmark = pytest.mark.mpi

END_S = 10.0
"""Within this a failing rank ends the job, beyond the few seconds of importing torch."""


def _launcher(ranks: int) -> list[str]:
    return launch_command(find_mpirun(), Ranks(["localhost"] * ranks, root=os.geteuid() == 0), [])


def test_a_job_from_the_parent(run_edgempi, tmp_path: Path) -> None:
    words = ["data.prompts=[hello]", "cluster=local3", "cluster.threads_per_rank=2", "cluster.timeout_s=33"]
    done = run_edgempi("infer", "--json", *words, fakes=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ranks"], result["threads"], result["timeout_s"]) == (3, 2, 33)
    assert result["payload"] == {"prompt": "hello", "text": "ein ß, 1e-5", "number": 1e-5}
    command, *others = done.stderr.splitlines()
    assert sorted(others) == ["answered by 3 ranks", "rank 0 is here", "rank 1 is here", "rank 2 is here"]
    (folder,) = tmp_path.glob("outputs/infer/*")
    assert command.endswith(f" -m edgempi.worker {folder.relative_to(tmp_path)}/job.yaml")
    assert json.loads((folder / "result.json").read_text()) == result
    assert sorted(path.name for path in folder.iterdir()) == ["job.yaml", "result.json"]


def test_a_job_from_a_launcher(run_edgempi, tmp_path: Path) -> None:
    done = run_edgempi("infer", "--json", "data.prompts=[fail]", fakes=True, launcher=_launcher(2))
    assert done.returncode == 1, "the task says that its result is a failure"
    assert json.loads(done.stdout)["ranks"] == 2
    assert not list(tmp_path.iterdir())


def test_another_number_of_ranks_than_devices(run_edgempi) -> None:
    done = run_edgempi("infer", "data.prompts=[hello]", "cluster=local3", fakes=True, launcher=_launcher(2))
    assert done.returncode == 2
    said = "edgempi: MPI ranks: 2; the configuration has 3 devices, one rank each. Start 3 ranks"
    assert done.stderr.count("edgempi: ") == done.stderr.count(said) == 1


@pytest.mark.parametrize("ranks", ["", "1"])
def test_a_users_error_in_the_ranks_is_one_line(run_edgempi, ranks: str) -> None:
    done = run_edgempi("infer", f"data.prompts=['mistake {ranks}']", fakes=True, timeout_s=30)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["edgempi: request: mistake; nobody errs. Err not."]


@pytest.mark.parametrize("deed", ["raise", "exit 1"])
def test_a_failing_rank_ends_the_job_with_one_traceback(run_edgempi, deed: str) -> None:
    start = time.monotonic()
    done = run_edgempi("infer", f"data.prompts=['{deed}']", fakes=True, timeout_s=30)
    assert time.monotonic() - start < END_S + 5
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    report = [line for line in done.stderr.splitlines() if line.startswith("[rank ")]
    assert len({line.partition("]")[0] for line in report}) == 1
    assert ("RuntimeError: boom" if deed == "raise" else "SystemExit: 3") in report[-1]


def test_a_killed_rank_ends_the_job(run_edgempi) -> None:
    start = time.monotonic()
    done = run_edgempi("infer", "data.prompts=['die 1']", fakes=True, timeout_s=30)
    assert time.monotonic() - start < END_S + 5
    assert done.returncode not in (0, 1, 2)
    assert "edgempi: a rank was lost" in done.stderr


def test_ctrl_c_ends_the_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "fakes")}
    command = [sys.executable, "-m", "edgempi", "infer", "data.prompts=[sleep]"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert "is here" in parent.stdout.readline()
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGINT)
        _, err = parent.communicate(timeout=END_S)
    assert parent.returncode == 130
    assert err.endswith("edgempi: stopped by SIGINT\n")
    assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]


def test_a_missing_job_file(tmp_path: Path) -> None:
    command = [*_launcher(1), sys.executable, "-m", "edgempi.worker", "nowhere/job.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "job file: nowhere/job.yaml: No such file or directory" in done.stderr
