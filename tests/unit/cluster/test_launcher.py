from __future__ import annotations

import pytest

from edgempi.cluster.launcher import launched_rank

SLURM_TASK = {"SLURM_PROCID": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}, 3),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, 1),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, 0),
        ({"PMIX_RANK": "2", **SLURM_TASK}, 2),
        ({"PMI_RANK": ""}, None),
    ],
)
def test_a_launchers_own_variables_count(environ: dict[str, str], rank: int | None) -> None:
    assert launched_rank(environ) == rank


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_TASKS_PER_NODE": "2(x2)"},  # sbatch
        {"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_PTY_PORT": "4000", "SLURM_PROCID": "0"},  # srun --pty bash, pmi2
        {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "4000"},  # srun --pty bash, pmix
    ],
)
def test_a_batch_systems_shell_does_not(environ: dict[str, str]) -> None:
    assert launched_rank(environ) is None


def test_mpirun_from_an_interactive_slurm_shell() -> None:
    shell = {"SLURM_PTY_PORT": "4000", "SLURM_STEP_NUM_TASKS": "1"}
    assert launched_rank({**shell, "PMI_RANK": "1", "PMI_SIZE": "2"}) == 1
    assert launched_rank({**shell, "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}) == 0
