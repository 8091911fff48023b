"""What is told of a plan adds up, and what lost says by how much."""

from __future__ import annotations

import pytest

from edgempi.plan.auto import Allowed, plan_auto
from edgempi.plan.memory import RUNTIME_BYTES, predict_memory
from edgempi.plan.reasons import block_rows, rejected_rows
from edgempi.plan.workload import Workload
from unit.plan.profiles import cluster
from unit.plan.specs import classifier

WORK, NAMES = Workload(1, 12), ["d0", "d1"]
PROFILE = cluster([2.0, 1.0], 2e7, [None, RUNTIME_BYTES + 10_000])
CHOICE = plan_auto(classifier(), WORK, PROFILE, "fp32", Allowed())
LATENCY = CHOICE.ranking[0].latency


def test_blocks_add_up_to_the_device() -> None:
    rows = block_rows(CHOICE.program.prefill, classifier(), WORK, NAMES, LATENCY)
    for rank, (name, device) in enumerate(zip(NAMES, LATENCY.devices, strict=True)):
        own = [row for row in rows if row["device"] == name]
        assert sum(row["compute_s"] or 0 for row in own) == pytest.approx(device.compute_s)
        assert sum(row["wire_s"] or 0 for row in own) == pytest.approx(device.wire_s)
        assert sum(row["exposed_s"] or 0 for row in own) == pytest.approx(device.exposed_s)
        peak = predict_memory(CHOICE.program.prefill, classifier(), rank, WORK).peak
        assert sum(row["memory_bytes"] for row in own) == peak


def test_without_times_memory_is_told_alone() -> None:
    rows = block_rows(CHOICE.program.prefill, classifier(), WORK, NAMES, None)
    assert {row["block"] for row in rows} >= {"embedding", "attention", "mlp", "head", "runtime"}
    assert all(row["compute_s"] is None for row in rows)


def test_what_lost_says_why() -> None:
    rows = rejected_rows(CHOICE.ranking)
    slower = [row["seconds"] for row in rows if row["seconds"] is not None]
    assert slower == sorted(slower)
    assert slower[0] >= CHOICE.ranking[0].score.seconds
    assert any(row["why"].startswith("slower by ") for row in rows)
    assert any(row["why"].startswith("does not fit: d1 lacks ") for row in rejected_rows(CHOICE.ranking[-3:]))
