"""Plans of training told: figures that add up, and reasons that are true."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgempi.plan.training.actions import schedule
from edgempi.plan.training.explain import device_rows, explain_training, layers_text, sent_bytes
from edgempi.plan.training.pac import Continuation, Job
from edgempi.plan.training.sizes import LayerBytes
from edgempi.plan.training.systems import Request, System, SystemPlan, limits_of, plan_costs
from edgempi.plan.training.technique import Technique
from unit.plan.training.models import t5
from unit.plan.training.workloads import cluster, even_costs

MB = 10**6
SIZE = LayerBytes(frozen=50 * MB, trained=10**5, stored=10**5, forward=90_000, backward=10_000, cache=80_000)
JOB = Job(rows=16, samples=160, epochs=9)
LAN = cluster(4, 1e9, [250 * MB] * 4)


def _planned(system: System = System.pac) -> SystemPlan:
    """Eight layers of 50 MB on four devices of 250 MB."""
    request = Request(system, Technique.parallel_adapter)
    first = even_costs(4, 8, 0.010, 0.002, SIZE)
    cached = even_costs(4, 8, 0.001, 0.002, replace(SIZE, frozen=0)) if request.caches else None
    found = plan_costs(request, first, cached, LAN, JOB)
    return SystemPlan(request, limits_of(system, 4), first, cached, found)


def test_what_is_told_adds_up() -> None:
    told = explain_training(_planned(), LAN, JOB)
    assert json.loads(json.dumps(told)) == told
    assert told["continuation"] == "redistribute"
    assert told["total_s"] == pytest.approx(sum(row["seconds"] for row in told["phases"]) + told["moving"]["seconds"])
    assert [(row["phase"], row["epochs"], row["steps"]) for row in told["phases"]] == [
        ("train", 1, 10), ("cached", 8, 80),
    ]  # fmt: skip
    for name in ("train", "cached"):
        step_s = next(row["step_s"] for row in told["phases"] if row["phase"] == name)
        rows = told["devices"][name]
        assert [row["rank"] for row in rows] == [0, 1, 2, 3]
        for row in rows:
            assert row["busy_s"] + row["idle_s"] == pytest.approx(step_s)
            assert row["memory"]["peak"] == sum(n for kind, n in row["memory"].items() if kind != "peak")
            assert row["memory"]["peak"] <= row["budget_bytes"]
    assert sum(row["rows"] for row in told["devices"]["cached"]) == 16
    assert {row["layers"] for row in told["devices"]["cached"]} == {"dec 0-7"}


def test_every_stage_has_all_rows() -> None:
    told = explain_training(_planned(), LAN, JOB)
    by_stage: dict[int, int] = {}
    for row in told["devices"]["train"]:
        by_stage[row["stage"]] = by_stage.get(row["stage"], 0) + row["rows"]
    assert len(by_stage) > 1
    assert set(by_stage.values()) == {16}


def test_what_moves() -> None:
    planned = _planned()
    moving = explain_training(planned, LAN, JOB)["moving"]
    stages = len(planned.found.groups)
    assert moving["cache_bytes"] == 160 * 8 * 80_000 * (stages - 1) // stages
    total = moving["cache_bytes"] + moving["parameter_bytes"]
    assert sum(row["sent_bytes"] for row in moving["devices"]) == total
    assert sum(row["received_bytes"] for row in moving["devices"]) == total


def test_what_was_considered_and_rejected() -> None:
    planned = _planned()
    told = explain_training(planned, LAN, JOB)
    assert {row["continuation"] for row in told["considered"]} == set(Continuation)
    assert [row["chosen"] for row in told["considered"]] == [True, False, False]
    totals = [row["total_s"] for row in told["considered"]]
    assert totals == sorted(totals)
    assert totals[0] == told["total_s"]
    slower = [row for row in told["rejected"] if row["total_s"] is not None]
    assert slower
    assert all(row["total_s"] >= told["total_s"] for row in slower)
    assert slower[0]["why"] == f"slower by {slower[0]['total_s'] / told['total_s'] - 1:.1%}"
    # 400 MB of weights do not fit on a device of 250 MB.
    (whole,) = (row for row in told["rejected"] if row["name"] == "one stage")
    assert whole["why"].startswith("does not fit: d")
    assert "lacks 1" in whole["why"]


def test_idle_devices_are_told_too() -> None:
    request = Request(System.standalone, Technique.lora, alone=1)
    costs, lan = even_costs(3, 4, 0.01, 0.01, SIZE), cluster(3, 1e9)
    found = plan_costs(request, costs, None, lan, JOB)
    rows = device_rows(found.train, costs, lan, JOB.rows)
    assert [row["layers"] for row in rows] == ["idle", "dec 0-3", "idle"]
    assert [row["stage"] for row in rows] == [None, 0, None]
    assert [row["rows"] for row in rows] == [0, 16, 0]
    assert rows[0]["memory"]["peak"] == rows[0]["busy_s"] == rows[0]["sent_bytes"] == 0
    told = explain_training(SystemPlan(request, limits_of(System.standalone, 3), costs, None, found), lan, JOB)
    assert told["moving"] is None
    assert [row["phase"] for row in told["phases"]] == ["train"]
    assert told["phases"][0]["epochs"] == 9


def test_rings_count_both_ways() -> None:
    costs = even_costs(2, 2, size=replace(SIZE, trained=1000))
    found = plan_costs(Request(System.eddl, Technique.lora), costs, None, cluster(2, 1e9), JOB)
    made = schedule(found.train.plan, costs, 16, found.train.depths)
    assert sent_bytes(made) == {0: 2000, 1: 2000}  # 2 (n - 1) / n of 2000 bytes


def test_layers_in_words() -> None:
    units = t5(3, 64, 1, 64).units
    assert layers_text(units) == "embed enc 0-2 embed dec 0-2 head"
    assert layers_text(units[1:3]) == "enc 0-1"
    assert layers_text(("head",)) == "head"
    assert layers_text(()) == "idle"
