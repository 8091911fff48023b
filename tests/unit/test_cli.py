from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgempi
from edgempi.cli import main


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_parent_never_imports_mpi() -> None:
    script = (
        "import sys; from edgempi.cli import main; sys.argv[1:] = {words};"
        "main(); print('mpi4py.MPI' in sys.modules, file=sys.stderr)"
    )
    for words in (["plan", "--help"], ["plan", "--cfg", "job"], ["plan"]):
        command = [sys.executable, "-c", script.format(words=words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_names_the_tasks(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr()
    assert "Usage: edgempi TASK" in said.out
    assert "doctor" in said.out
    assert not said.err


def test_task_help_lists_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--help"]) == 0
    said = capsys.readouterr().out
    assert "parallel=      data, heads, hybrid, pipeline" in said
    assert "planner.speeds" in said
    assert "relative speeds in rank order" in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgempi {edgempi.__version__}\n"


def test_cfg_shows_the_configuration_and_makes_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cluster=local3", "--cfg", "job"]) == 0
    assert "ranks: 3" in capsys.readouterr().out
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["infr"], "task: infr; the first word is one of infer, plan, verify"),
        (["cluster=local2"], "task: cluster=local2"),
        (["infer", "--jsn"], "Perhaps you meant --json"),
        (["infer", "--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["infer", "task=plan"], "Say edgempi plan"),
        (["infer", "modl.path=x"], "configuration key: modl; there is no such key. Perhaps you meant model."),
        (["infer", "+model.pth=x"], "there is no such key. Perhaps you meant model.path"),
        (["infer", "cluster=local9"], "cluster choice: local9"),
        (["infer", "cluster.ranks=many"], "it is of type int"),
        (["infer", "cluster.ranks=[1"], "an override is key=value"),
        (["infer", "cluster.ranks=1,2"], "add --multirun"),
        (["infer", "parallel=pipeline_hybrid"], "the cluster has devices 0 to 1"),
        (["infer", "planner=proportional", "planner.speeds=[1]"], "2 numbers of zero or more"),
        (["infer", "--config-dir", "nowhere"], "not found"),
        (["infer", "cluster.lab.time_scale=3"], "override: cluster.lab.time_scale=3; it sets a key of something that"),
        (["infer", "--", "true"], "only edgempi lab run takes a command"),
        (["lab", "upp"], "task.action: upp; it is one of up, status, run, check, down. Perhaps you meant up."),
        (["lab", "up"], "Add cluster=lab_a"),
        (["lab", "check"], "Add cluster=lab_a"),
        (["lab", "run", "cluster=lab_b"], "lab run runs one"),
        (["lab", "run", "cluster=lab_b", "task.device=pi", "--", "true"], "it is one of nano-m0, nano-m1, nano-m2"),
        (["lab", "down", "--", "rm", "a b"], "command: rm 'a b'; lab down takes none"),
        (["infer", "hydra.run.dir=/dev/null/x"], "run folder: /dev/null/x"),
    ],
)
def test_errors_are_one_line_and_status_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("edgempi: ")
    assert err.count("\n") == 1
    assert not list(Path.cwd().rglob("*.yaml"))


def test_a_launchers_ranks_complain_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(3):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        assert main(["infer", "--multirun", "wire=fp32,bf16"]) == 2
    assert capsys.readouterr().err.count("ranks are already started") == 1


def test_a_task_without_ranks_reports_in_the_parent(run_edgempi, tmp_path: Path) -> None:
    done = run_edgempi("plan", "cluster=local3", fakes=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "planned for 3 devices\n", "")
    (result,) = tmp_path.glob("outputs/plan/*/result.json")
    assert json.loads(result.read_text()) == {"devices": ["device0", "device1", "device2"]}


def test_json_has_standard_output_to_itself(run_edgempi) -> None:
    done = run_edgempi("plan", "--json", fakes=True)
    assert json.loads(done.stdout) == {"devices": ["device0", "device1"]}
    assert done.stderr == "planned for 2 devices\n"


def test_multirun_runs_each_job_and_keeps_the_worst_status(run_edgempi, tmp_path: Path) -> None:
    done = run_edgempi("plan", "--multirun", "cluster.ranks=1,0,3", fakes=True)
    assert done.returncode == 2
    assert done.stdout == "planned for 1 devices\nplanned for 3 devices\n"
    assert "edgempi: cluster.ranks: 0" in done.stderr
    assert sorted(path.parent.name for path in tmp_path.rglob("result.json")) == ["0", "2"]


def test_what_prepare_refuses_leaves_no_folder(run_edgempi, tmp_path: Path) -> None:
    done = run_edgempi("infer", "data.prompts=[refuse]", fakes=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgempi: request: refuse; it is refused. Ask for something else.\n"
    assert not list(tmp_path.glob("outputs/infer/*"))
