"""A rank that never answers: the others say so, naming who waits for whom in what, and nothing hangs.

How a rank that raises, exits or is killed ends the job is `test_worker.py`'s subject.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpi.launch import run_ranks
from mpi.ranks_silent import WAIT_S

pytestmark = pytest.mark.mpi


def test_a_silent_rank_is_named(tmp_path: Path) -> None:
    result = tmp_path / "said.json"
    ended = run_ranks(3, "mpi.ranks_silent", [str(result)], 60)
    assert ended.status not in (0, None)
    said = json.loads(result.read_text())
    for met in said.values():
        assert WAIT_S <= met["seconds"] < WAIT_S + 2, met
    assert "rank 0 on " in said["control"]["said"] and "control message from rank 1" in said["control"]["said"]
    assert "rank 0 on" in said["ring"]["said"] and "waits for rank 2 in reduce-scatter" in said["ring"]["said"]
    assert "reduce-scatter of dec.1" in said["ring"]["said"]
    assert "receive of dec.1 from rank 1" in said["transfer"]["said"]


def test_time_up_ends_the_ranks() -> None:
    """The lab's own limit, on which every other test here leans."""
    ended = run_ranks(2, "timeit", ["-n1", "-r1", "import time; time.sleep(60)"], 2)
    assert ended.status is None
    assert ended.seconds < 10
