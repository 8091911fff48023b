from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgempi.cluster.mpirun import Mpirun, Ranks, find_mpirun, launch_command, parse_version
from edgempi.errors import UserError

OPENMPI, MPICH = Mpirun("mpirun", "openmpi", 5), Mpirun("mpiexec", "mpich", 5)
LAN = Ranks(["a", "a", "b"], network="192.168.1.0/24", threads=4)


def _line(mpirun: Mpirun, ranks: Ranks) -> str:
    return " ".join(launch_command(mpirun, ranks, ["python", "-m", "edgempi.worker", "job.yaml"]))


def test_openmpi_on_this_machine() -> None:
    assert _line(OPENMPI, Ranks(["localhost"] * 2)) == (
        "mpirun -n 2 --host localhost:2 --map-by slot:OVERSUBSCRIBE --bind-to none --mca pml ob1 --mca btl self,sm "
        "--mca mpi_yield_when_idle 1 -x OMP_NUM_THREADS=1 python -m edgempi.worker job.yaml"
    )


def test_openmpi_over_the_network() -> None:
    line = _line(OPENMPI, LAN)
    assert "-n 3 --host a:2,b:1" in line
    assert "--mca btl self,sm,tcp" in line
    assert "--mca btl_tcp_if_include 192.168.1.0/24" in line
    assert "-x OMP_NUM_THREADS=4" in line


def test_openmpi_sends_tiles_between_hosts_without_a_handshake() -> None:
    eager = "--mca btl_tcp_eager_limit 2097152 --mca btl_tcp_free_list_num 2 --mca btl_tcp_free_list_inc 2"
    assert eager in _line(OPENMPI, LAN)
    assert "--mca opal_abort_delay 1" in _line(OPENMPI, LAN)
    assert "eager" not in _line(OPENMPI, Ranks(["localhost"] * 2))


def test_an_agent_stands_in_for_ssh_and_shared_memory_stays_out() -> None:
    emulated = replace(LAN, agent="/run/agent")
    line = _line(OPENMPI, emulated)
    assert "--prtemca plm_ssh_agent /run/agent" in line and "--mca btl self,tcp" in line
    line = _line(MPICH, replace(emulated, network="eth0"))
    assert "-launcher ssh -launcher-exec /run/agent -genv UCX_TLS tcp,self" in line and "-hosts a:2,b:1" in line


def test_openmpi_refuses_root_unless_told() -> None:
    assert "--allow-run-as-root" in _line(OPENMPI, Ranks(["localhost"], root=True))
    assert "--allow-run-as-root" not in _line(OPENMPI, Ranks(["localhost"]))


def test_openmpi_4_calls_shared_memory_vader() -> None:
    assert "--mca btl self,vader " in _line(Mpirun("mpirun", "openmpi", 4), Ranks(["localhost"]))


def test_mpich_on_this_machine() -> None:
    assert _line(MPICH, Ranks(["localhost"] * 2, root=True)) == (
        "mpiexec -n 2 -genv OMP_NUM_THREADS 1 -launcher fork -hosts localhost python -m edgempi.worker job.yaml"
    )


def test_mpich_over_the_network() -> None:
    line = _line(MPICH, Ranks(["a", "b"], network="eth0"))
    assert "-launcher ssh -hosts a:1,b:1 -iface eth0" in line
    with pytest.raises(UserError, match="name of an interface"):
        _line(MPICH, LAN)


@pytest.mark.parametrize(
    ("said", "vendor", "major"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", "openmpi", 5),
        ("mpirun (Open MPI) 4.1.4", "openmpi", 4),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", "mpich", 5),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240701", "mpich", 2021),
    ],
)
def test_vendor_from_its_version_text(said: str, vendor: str, major: int) -> None:
    assert parse_version("mpirun", said) == Mpirun("mpirun", vendor, major)


@pytest.mark.parametrize("said", ["", "slurm 23.11"])
def test_an_unknown_launcher_is_refused(said: str) -> None:
    with pytest.raises(UserError, match="Open MPI, MPICH and Intel MPI"):
        parse_version("mpirun", said)


def _launcher(folder: Path, name: str, said: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
    (folder / name).chmod(0o755)


def test_the_environments_own_launcher_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _launcher(tmp_path / "system", "mpirun", "mpirun (Open MPI) 4.1.4")
    monkeypatch.setenv("PATH", f"{tmp_path / 'system'}:/bin")
    python = tmp_path / "venv" / "python"
    assert find_mpirun(str(python)).major == 4
    _launcher(tmp_path / "venv", "mpiexec", "HYDRA build details: Version: 5.0.2")
    assert find_mpirun(str(python)) == Mpirun(str(tmp_path / "venv" / "mpiexec"), "mpich", 5)


def test_no_launcher_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install"):
        find_mpirun(str(tmp_path / "python"))
