"""A plan of training printed: every part is there, and times are told in units that fit."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from edgempi.plan.training.explain import explain_training
from edgempi.plan.training.pac import Job
from edgempi.plan.training.sizes import LayerBytes
from edgempi.plan.training.systems import Request, System, SystemPlan, limits_of, plan_costs
from edgempi.plan.training.technique import Technique
from edgempi.tasks.training_tables import print_training
from unit.plan.training.workloads import cluster, even_costs

SIZE = LayerBytes(frozen=50 * 10**6, trained=10**5, stored=10**5, forward=90_000, backward=10_000, cache=80_000)


def _printed(system: System, technique: Technique) -> str:
    job, lan = Job(rows=16, samples=160, epochs=20), cluster(4, 1e9, [250 * 10**6] * 4)
    request = Request(system, technique)
    first = even_costs(4, 8, 0.3, 0.1, SIZE)
    cached = even_costs(4, 8, 0.03, 0.1, replace(SIZE, frozen=0)) if request.caches else None
    found = plan_costs(request, first, cached, lan, job)
    told = explain_training(SystemPlan(request, limits_of(system, 4), first, cached, found), lan, job)
    written = StringIO()
    print_training(Console(width=200, file=written), told)
    return written.getvalue()


def test_everything_is_there() -> None:
    text = _printed(System.pac, Technique.parallel_adapter)
    for part in (
        "pac, parallel_adapter", "One step, train", "One step, cached", "Memory, train", "Redistribution", "receives",
        "After the first epoch", "Rejected", "does not fit: d", "of cached activations and", "min",
    ):  # fmt: skip
        assert part in text


def test_what_does_not_apply_is_left_out() -> None:
    text = _printed(System.ecofl, Technique.lora)
    assert "ecofl, lora" in text
    for part in ("cached", "Redistribution", "After the first epoch"):
        assert part not in text
