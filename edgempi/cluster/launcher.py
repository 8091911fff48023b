"""Were we started by an MPI launcher, and as which rank? Asked before MPI may be touched.

Only variables that a launcher sets for each rank count. A batch shell does not: sbatch sets SLURM_PROCID in the
script it runs, and `srun --pty bash` on a site whose default is PMI sets PMI_RANK or PMIX_RANK in that one shell.
"""

from __future__ import annotations

from collections.abc import Mapping

_RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",  # Open MPI's mpirun
    "PMI_RANK",  # MPICH and Intel MPI, and srun --mpi=pmi2
    "PMIX_RANK",  # srun --mpi=pmix, PRRTE
    "MV2_COMM_WORLD_RANK",  # MVAPICH2
    "PALS_RANKID",  # Cray's mpiexec
)


def launched_rank(environ: Mapping[str, str]) -> int | None:
    """This process's rank if an MPI launcher started it, else None.

    Args:
        environ: the process environment.
    """
    for name in _RANK_VARIABLES:
        value = environ.get(name, "")
        if value.isdigit() and not (name.startswith("PMI") and _is_interactive_shell(environ)):
            return int(value)
    return None


def _is_interactive_shell(environ: Mapping[str, str]) -> bool:
    # An mpirun started from such a shell inherits SLURM_PTY_PORT, but sets a PMI_SIZE of its own.
    tasks = environ.get("PMI_SIZE", environ.get("SLURM_STEP_NUM_TASKS"))
    return "SLURM_PTY_PORT" in environ and tasks == "1"
