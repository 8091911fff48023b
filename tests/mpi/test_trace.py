"""A job's trace, and a prompt that streams through a pipeline, the way a person asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.comm.test_trace import check_format

pytestmark = pytest.mark.mpi

RANKS = 2


def test_infer_writes_a_trace(run_edgempi, tmp_path: Path) -> None:
    words = ["cluster=local2", "parallel=token_pipeline", "task.trace=trace.json", "task.compare=false"]
    prompt = "data.prompts=['it is too dark in the kitchen']"
    done = run_edgempi("infer", "--json", *words, prompt, "data.max_new_tokens=4", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "exposed" in done.stderr and "trace.json" in done.stderr
    result = json.loads(done.stdout)
    slices = check_format(json.loads((tmp_path / "trace.json").read_text()))
    assert {one["pid"] for one in slices} == set(range(RANKS))
    for rank, told in enumerate(result["ranks"]):
        own = [one for one in slices if one["pid"] == rank]
        # One request was timed, and it is the one that was recorded.
        assert sum(one["args"]["bytes"] for one in own if one["cat"] == "send") == told["bytes_sent"]
        assert sum(one["dur"] for one in own if one["cat"] == "wait") == pytest.approx(told["waited_s"] * 1e6, rel=0.01)
        assert told["compute_s"] + told["waited_s"] == pytest.approx(told["passes_s"])
        assert told["passes_s"] * 1e6 >= max(one["ts"] + one["dur"] for one in own) - min(one["ts"] for one in own)
    assert _passes(slices, 0, "dec.embed") == _passes(slices, 1, "dec.norm") == [4, 1, 1, 1]  # chunks, then tokens
    sent, got = (_of(slices, rank, lane) for rank, lane in ((0, "send"), (1, "receive")))
    assert len(got) == len(sent)
    for one, other in zip(sent, got, strict=True):
        assert other["ts"] + other["dur"] >= one["ts"] - 1000  # nothing arrives before it was sent, on one clock


def _of(slices: list[dict], rank: int, lane: str) -> list[dict]:
    """In the order in which they were posted, which is the same for the two sides of a pair of ranks."""
    return sorted((one for one in slices if one["pid"] == rank and one["cat"] == lane), key=lambda one: one["ts"])


def _passes(slices: list[dict], rank: int, unit: str) -> list[int]:
    """How often a unit ran before each token: the exchange of winners stands between."""
    found = [0]
    own = (one for one in slices if one["pid"] == rank)
    for one in sorted(own, key=lambda one: one["ts"]):
        if one["name"] == unit:
            found[-1] += 1
        elif one["name"] == "next token" and found[-1]:
            found.append(0)
    return [count for count in found if count]


def test_a_trace_that_cannot_be_written(run_edgempi) -> None:
    done = run_edgempi("infer", "cluster=local2", "task.trace=/nowhere/trace.json")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edgempi: task.trace: /nowhere/trace.json; it is a file, in a folder that is there")
