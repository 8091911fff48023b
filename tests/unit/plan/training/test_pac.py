"""The planner of all epochs: what it chooses, what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import pytest

from edgempi.errors import UserError
from edgempi.plan.balance import Cost
from edgempi.plan.check import check_plan
from edgempi.plan.text import program_from_yaml, program_to_yaml
from edgempi.plan.training.actions import microbatch_spans, schedule
from edgempi.plan.training.costs import Costs, LayerTimes
from edgempi.plan.training.memory import stage_memory
from edgempi.plan.training.network import Network
from edgempi.plan.training.pac import Continuation, Job, plan_training
from edgempi.plan.training.partition import Limits
from edgempi.plan.training.sizes import LayerBytes, layer_bytes, pieces
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.training.validate import check_schedule
from edgempi.plan.workload import Workload
from unit.plan.training.models import t5
from unit.plan.training.workloads import cluster, costs, even_costs

FIRST = LayerBytes(frozen=50 * 10**6, trained=10**5, stored=10**5, forward=90_000, backward=10_000, cache=80_000)
CACHED = replace(FIRST, frozen=0, forward=10_000)


def _pair(devices: int, layers: int) -> tuple[Costs, Costs]:
    """A backbone and its side network, an eighth of it."""
    first = even_costs(devices, layers, 0.010, 0.002, FIRST)
    return first, even_costs(devices, layers, 0.001, 0.002, CACHED)


def test_one_epoch_caches_nothing() -> None:
    first, cached = _pair(4, 8)
    found = plan_training(first, cached, cluster(4, 1e9), Job(rows=16, samples=160))
    assert found.continuation is Continuation.recompute
    assert (found.cached, found.moving) == (None, None)
    assert list(found.program.phases) == ["train"]


def test_many_epochs_redistribute_over_a_fast_network() -> None:
    first, cached = _pair(4, 8)
    budgets = [250 * 10**6] * 4  # a quarter of the backbone each, so that stages are needed
    found = plan_training(first, cached, cluster(4, 1e9, budgets), Job(rows=16, samples=160, epochs=5))
    assert found.continuation is Continuation.redistribute
    assert len(found.train.plan.stages) > 1
    assert found.cached is not None
    (stage,) = found.cached.plan.stages
    assert (stage.modes.name, stage.rows) == ("data", (4.0,) * 4)
    assert found.moving is not None
    stages = len(found.train.plan.stages)
    cache = 160 * 8 * 80_000
    assert sum(10 * move.nbytes for move in found.moving.cache) == cache * (stages - 1) / stages
    assert found.total_s == min(found.considered.values())
    assert set(found.considered) == set(Continuation)
    assert program_from_yaml(program_to_yaml(found.program)) == found.program


def test_a_slow_network_leaves_the_cache_where_it_is() -> None:
    first, cached = _pair(4, 8)
    big = replace(FIRST, cache=10**8)
    first = replace(first, layers=(big,) * 8)
    cached = replace(cached, layers=(replace(big, frozen=0, forward=100, backward=100, trained=10**5),) * 8)
    budgets = [250 * 10**6] * 4
    found = plan_training(first, cached, cluster(4, 1e8, budgets), Job(rows=16, samples=160, epochs=3))
    assert found.continuation is Continuation.in_place
    assert found.cached is not None
    assert found.cached.plan == found.train.plan


def test_slow_storage_makes_the_cache_useless() -> None:
    first, cached = _pair(2, 4)
    job = Job(rows=8, samples=80, epochs=3, read_s_per_byte=1e-3)
    assert plan_training(first, cached, cluster(2, 1e9), job).continuation is Continuation.recompute


def test_totals_add_up() -> None:
    first, cached = _pair(4, 8)
    lan = cluster(4, 1e9, [250 * 10**6] * 4)
    found = plan_training(first, cached, lan, Job(rows=16, samples=160, epochs=5))
    assert found.cached is not None
    assert found.moving is not None
    assert found.moving_s == Network.of(lan).exchange_s(found.moving.sent(10))
    assert found.total_s == pytest.approx(10 * found.train.step_s + found.moving_s + 40 * found.cached.step_s)


def test_forced_it_is_eddl_and_ecofl() -> None:
    first, _ = _pair(4, 8)
    job = Job(rows=16, samples=160)
    eddl = plan_training(first, None, cluster(4, 1e9), job, Limits(stages=1, everyone=True)).train
    assert [(stage.modes.name, stage.size) for stage in eddl.plan.stages] == [("data", 4)]
    ecofl = plan_training(first, None, cluster(4, 1e9), job, Limits(stages=4, group=1)).train
    assert [(stage.modes.name, len(stage.units)) for stage in ecofl.plan.stages] == [("single", 2)] * 4
    alone = plan_training(_pair(1, 8)[0], None, cluster(1), job).train
    assert (alone.plan.name, alone.plan.microbatches) == ("single", 1)


def test_the_published_objective_never_takes_less() -> None:
    for seed in range(6):
        rng = Random(seed)
        speeds = [rng.uniform(0.3, 2.0) for _ in range(4)]
        line = [[(0.001 / s, 0.01 / s)] * 6 for s in speeds]
        c = costs(line, line, [FIRST] * 6)
        job, lan = Job(rows=8, samples=80), cluster(4, 2e7)
        ours, theirs = plan_training(c, None, lan, job), plan_training(c, None, lan, job, published=True)
        assert ours.train.step_s <= theirs.train.step_s * (1 + 1e-9)


def test_memory_shapes_the_plan_and_is_kept() -> None:
    size = replace(FIRST, stored=10**7)
    c = even_costs(3, 6, 0.01, 0.01, size)
    budgets = [400 * 10**6, 150 * 10**6, 250 * 10**6]
    found = plan_training(c, None, cluster(3, 1e9, budgets), Job(rows=8, samples=80)).train
    assert all(found.memory[d].peak <= budgets[d] for d in range(3))
    made = schedule(found.plan, c, 8, found.depths)
    held = {d: k for stage, k in zip(found.plan.stages, found.depths, strict=False) for d in stage.devices}
    check_schedule(made, microbatch_spans(8, found.plan.microbatches), held)


@pytest.mark.parametrize("limits", [None, Limits(stages=2, group=1)])
def test_what_does_not_fit_is_refused(limits: Limits | None) -> None:
    c = even_costs(2, 6, size=FIRST)
    # Three of six layers of 50 MB, and 42 MB of libraries, on each device.
    lan = cluster(2, budgets=[150 * 10**6, 160 * 10**6])
    with pytest.raises(UserError, match=re.compile("device d0: needs 193 MB .*150 MB .*Raise its budget by 43 MB")):
        plan_training(c, None, lan, Job(rows=4, samples=8), limits)


def test_eddl_says_which_device_lacks_most() -> None:
    c = even_costs(2, 6, size=FIRST)
    with pytest.raises(UserError, match="device d1: needs 34"):
        lan = cluster(2, budgets=[500 * 10**6, 160 * 10**6])
        plan_training(c, None, lan, Job(rows=4, samples=8), Limits(stages=1, everyone=True))


def test_limits_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(UserError, match="3 stages"):
        plan_training(even_costs(2, 2), None, cluster(2), Job(rows=4, samples=8), Limits(stages=3))


def test_fifty_layers_and_eight_devices() -> None:
    rng = Random(0)
    speeds = [rng.uniform(0.3, 1.5) for _ in range(8)]
    size = LayerBytes(
        frozen=12 * 10**6, trained=4 * 10**5, stored=3 * 10**6, workspace=10**6, forward=590_000, backward=65_000,
        cache=524_288,
    )  # fmt: skip
    times = tuple(
        LayerTimes(
            tuple(Cost(0.001 / s, 0.01 * (1 + k % 2) / s) for k in range(50)), (Cost(0.001 / s, 0.001 / s),) * 50
        )
        for s in speeds
    )
    first = Costs(tuple((f"dec.{k}",) for k in range(50)), (size,) * 50, times, 2)
    lan = cluster(8, 1e9, [rng.randrange(300, 900) * 10**6 for _ in range(8)], 1e-4)
    cached = replace(first, times=tuple(replace(t, forward=t.backward) for t in times))
    found = plan_training(first, cached, lan, Job(rows=16, samples=1600, epochs=3))
    for phase in (found.train, found.cached or found.train):
        assert all(phase.memory[d].peak <= (lan.devices[d].memory_budget_bytes or 0) for d in range(8))
    assert [unit for stage in found.train.plan.stages for unit in stage.units] == [f"dec.{k}" for k in range(50)]


@pytest.mark.parametrize("technique", list(Technique))
def test_plans_of_a_real_model_keep_the_rules_of_plans(technique: Technique) -> None:
    spec = t5(3, 128, 2, 256)
    tuning, work = Tuning(technique), Workload(rows=8, tokens=4, memory_tokens=32)
    times = tuple(LayerTimes((Cost(1e-4, 0.01 / s),) * 6, (Cost(1e-4, 0.01 / s),) * 6) for s in (1.0, 2.0, 1.5))
    first = Costs(pieces(spec), layer_bytes(spec, tuning, work), times, 2)
    cached = None if tuning.crosses_backbone else replace(first, layers=layer_bytes(spec, tuning, work, cached=True))
    need = [stage_memory(first, (0, 6), 8, 1).peak * share // 10 for share in (8, 9, 7)]
    found = plan_training(first, cached, cluster(3, 1e9, need), Job(rows=8, samples=80, epochs=4))
    assert len(found.train.plan.stages) > 1
    for phase in filter(None, (found.train, found.cached)):
        check_plan(phase.plan, spec)
        made = schedule(phase.plan, first, 8, phase.depths)
        working = [stage for stage in phase.plan.stages if stage.units]
        held = {d: k for stage, k in zip(working, phase.depths, strict=True) for d in stage.devices}
        check_schedule(made, microbatch_spans(8, phase.plan.microbatches), held)
