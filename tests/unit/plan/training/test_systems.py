"""The systems: what their plans look like, when they cache, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.cluster.profile import ElementTime
from edgempi.cluster.training_times import LayerTime, RowTime, TrainingTimes
from edgempi.errors import UserError
from edgempi.plan.check import check_program
from edgempi.plan.plan import PRESETS, Program
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.measured import Kept, layer_kinds, purpose_of, training_costs
from edgempi.plan.training.pac import Continuation, Job
from edgempi.plan.training.sizes import LayerBytes
from edgempi.plan.training.systems import Request, System, plan_costs, plan_system
from edgempi.plan.training.technique import Technique, Tuning, trained_elements
from edgempi.plan.workload import Workload
from unit.plan.training.models import t5
from unit.plan.training.workloads import cluster, costs, even_costs

MB = 10**6
SIZE = LayerBytes(
    frozen=50 * MB, trained=10**5, stored=10**5, forward=90_000, backward=90_000, cache=80_000
)  # fmt: skip
JOB, LONG = Job(rows=16, samples=160), Job(rows=16, samples=160, epochs=9)
LORA, SIDE = Technique.lora, Technique.parallel_adapter


def _times(speed: float = 1.0, cached: bool = True) -> TrainingTimes:
    """Encoder layers take 10 ms a row, decoder layers 1 ms; ends a bit more; from the cache a tenth."""

    def kinds(scale: float) -> dict[str, LayerTime]:
        found = {}
        for name, row in (("enc", 0.010), ("dec", 0.001)):
            for kind, extra in (("first", 1.1), ("inner", 1.0), ("last", 1.2)):
                line = RowTime(1e-4, row * extra * scale / speed)
                found[f"{name}.{kind}"] = LayerTime(line, line)
        return found

    return TrainingTimes(
        {"train": kinds(1.0), **({"cached": kinds(0.1)} if cached else {})}, ElementTime(1e-5, 1e-9 / speed)
    )


SPEC, WORK = t5(4, 128, 2, 256), Workload(rows=16, tokens=4, memory_tokens=32)


def _unequal(layers: int = 8) -> Costs:
    """Devices of speed 1, 2, 1 and 0.5."""
    lines = [[(0.001, 0.01 / speed)] * layers for speed in (1, 2, 1, 0.5)]
    return costs(lines, lines, [SIZE] * layers)


def test_one_device_is_the_one_that_is_done_first() -> None:
    found = plan_costs(Request(System.standalone, LORA), _unequal(), None, cluster(4, 1e9), JOB)
    assert found.groups == (1,)
    assert found.train.plan.stage_of(1).units == tuple(f"dec.{i}" for i in range(8))
    assert [found.train.memory[d].peak > 0 for d in range(4)] == [False, True, False, False]
    slower = plan_costs(Request(System.standalone, LORA, alone=3), _unequal(), None, cluster(4, 1e9), JOB)
    assert slower.train.plan.working == (3,)
    assert slower.total_s == pytest.approx(4 * found.total_s, rel=0.01)


def test_one_device_is_one_that_has_the_memory() -> None:
    lan = cluster(4, 1e9, [600 * MB, 300 * MB, 300 * MB, 300 * MB])
    assert plan_costs(Request(System.standalone, LORA), _unequal(), None, lan, JOB).train.plan.working == (0,)


def test_eddl_shares_rows_by_speed() -> None:
    found = plan_costs(Request(System.eddl, LORA), _unequal(), None, cluster(4, 1e9), JOB)
    (stage,) = found.train.plan.stages
    rows = dict(zip(stage.devices, stage.rows, strict=True))
    # In the ratio of speeds 2 : 4 : 2 : 1, sixteen rows are 3.6, 7.1, 3.6 and 1.8.
    assert found.train.plan.microbatches == 1
    assert [abs(rows[d] - 16 * speed / 9) < 1 for d, speed in enumerate((2, 4, 2, 1))] == [True] * 4


def test_ecofl_has_a_stage_for_each_device() -> None:
    found = plan_costs(Request(System.ecofl, LORA), _unequal(), None, cluster(4, 1e9), JOB)
    assert found.groups == (1, 1, 1, 1)
    sizes = {stage.devices[0]: len(stage.units) for stage in found.train.plan.stages}
    assert sizes[1] == max(sizes.values())
    assert sizes[3] == min(sizes.values())
    with pytest.raises(UserError, match="system=ecofl: 3 layers on 4 devices"):
        plan_costs(Request(System.ecofl, LORA), _unequal(3), None, cluster(4, 1e9), JOB)


def test_asteroid_is_never_slower_than_the_systems_that_it_contains() -> None:
    lan = cluster(4, 5e7)
    total = {
        system: plan_costs(Request(system, LORA), _unequal(), None, lan, JOB).total_s
        for system in System
        if system is not System.pac
    }
    assert total[System.asteroid] <= min(total.values()) * (1 + 1e-9)
    assert total[System.standalone] == max(total.values())


def test_who_caches() -> None:
    lan = cluster(2, 1e9, [300 * MB] * 2)

    def after(system: System, cache: bool | None = None, job: Job = LONG) -> Continuation:
        request = Request(system, SIDE, cache=cache)
        first = even_costs(2, 8, 0.010, 0.002, SIZE)
        cached = even_costs(2, 8, 0.001, 0.002, replace(SIZE, frozen=0)) if request.caches else None
        return plan_costs(request, first, cached, lan, job).continuation

    assert after(System.pac) is Continuation.redistribute
    assert after(System.pac, cache=False) is Continuation.recompute
    assert after(System.asteroid) is Continuation.recompute
    assert after(System.asteroid, cache=True) is Continuation.in_place
    assert after(System.ecofl, cache=True) is Continuation.in_place
    assert after(System.pac, cache=True, job=JOB) is Continuation.recompute


def test_a_cache_that_is_asked_for_is_used_even_where_it_costs() -> None:
    first, slow = even_costs(2, 8, 0.010, 0.002, SIZE), even_costs(2, 8, 0.100, 0.200, SIZE)
    lan = cluster(2, 1e9)
    assert plan_costs(Request(System.pac, SIDE), first, slow, lan, LONG).continuation is Continuation.recompute
    forced = plan_costs(Request(System.pac, SIDE, cache=True), first, slow, lan, LONG)
    assert forced.continuation is not Continuation.recompute
    stays = plan_costs(Request(System.pac, SIDE, after=Continuation.in_place), first, slow, lan, LONG)
    assert stays.continuation is Continuation.in_place
    with pytest.raises(UserError, match="after the first epoch: redistribute; system=ecofl can recompute or in_place"):
        plan_costs(Request(System.ecofl, SIDE, True, after=Continuation.redistribute), first, slow, lan, LONG)


@pytest.mark.parametrize("system", [System.standalone, System.eddl])
def test_side_networks_without_stages(system: System) -> None:
    request = Request(system, SIDE, cache=True)
    times = [_times(1.0), _times(2.0)]
    without = plan_system(replace(request, cache=None), SPEC, Tuning(SIDE), WORK, times, cluster(2, 1e9), LONG)
    found = plan_system(request, SPEC, Tuning(SIDE), WORK, times, cluster(2, 1e9), LONG)
    assert without.cached is None
    assert found.found.cached is not None
    assert found.found.total_s < 0.6 * without.found.total_s
    assert found.found.moving is None or system is System.eddl
    check_program(found.found.program, SPEC)


def test_pac_is_for_side_networks_and_caches_are_too() -> None:
    with pytest.raises(UserError, match=r"system=pac: technique=lora; .*system=asteroid"):
        plan_costs(Request(System.pac, LORA), even_costs(2, 4), None, cluster(2), JOB)
    with pytest.raises(UserError, match="cache: asked for with technique=adapter"):
        plan_costs(Request(System.eddl, Technique.adapter, cache=True), even_costs(2, 4), None, cluster(2), JOB)
    with pytest.raises(UserError, match="device of system=standalone: 2; it is a rank from 0 to 1"):
        plan_costs(Request(System.standalone, LORA, alone=2), even_costs(2, 4), None, cluster(2), JOB)


@pytest.mark.parametrize(
    ("system", "technique", "said"),
    [
        # 400 MB of weights, 0.8 MB of parameters three times, 42 MB of libraries, on 300 and 320 MB.
        (
            System.standalone,
            LORA,
            r"technique=lora, device d1: .*320 MB .*whole .* set system=asteroid, .*=parallel_adapter",
        ),
        (System.eddl, LORA, r"technique=lora, device d0: .*300 MB .* set system=asteroid, which"),
        (System.eddl, SIDE, "system=eddl, technique=parallel_adapter, device d0: .* set system=pac, which"),
    ],
)
def test_what_does_not_fit_says_what_would_help(system: System, technique: Technique, said: str) -> None:
    lan = cluster(2, 1e9, [300 * MB, 320 * MB])
    with pytest.raises(UserError, match=said) as refused:
        plan_costs(Request(system, technique), even_costs(2, 8, size=SIZE), None, lan, JOB)
    assert ("technique=parallel_adapter," in refused.value.remedy) == (technique is LORA)


def test_stages_that_do_not_fit_either() -> None:
    lan = cluster(2, 1e9, [150 * MB, 160 * MB])
    with pytest.raises(UserError, match=r"system=asteroid, .*Raise its budget by \d+ MB, add devices, set technique"):
        plan_costs(Request(System.asteroid, LORA), even_costs(2, 8, size=SIZE), None, lan, JOB)


def test_programs_that_train_are_checked() -> None:
    request, tuning = Request(System.pac, SIDE, cache=True), Tuning(SIDE)
    found = plan_system(request, SPEC, tuning, WORK, [_times()] * 2, cluster(2, 1e9), LONG).found
    check_program(found.program, SPEC)
    train, cached = found.program.phases["train"], found.program.phases["cached"]
    tokens = replace(train.stages[0], modes=PRESETS["sequence"], tokens=(1.0,) * train.stages[0].size)
    with pytest.raises(UserError, match="phase train: sequence; training shares layers and whole rows"):
        check_program(Program({"train": replace(train, stages=(tokens, *train.stages[1:]))}), SPEC)
    with pytest.raises(UserError, match="program phases: decode; beside train"):
        check_program(Program({"train": train, "decode": train}), SPEC)
    with pytest.raises(UserError, match="phase cached: 2 devices, bf16; as in train: 2 devices, fp32"):
        check_program(Program({"train": train, "cached": replace(cached, weight_dtype="bf16")}), SPEC)
    with pytest.raises(UserError, match="plan units"):
        check_program(Program({"train": train, "cached": replace(cached, stages=cached.stages[:0])}), SPEC)


def test_layers_by_kind() -> None:
    assert layer_kinds(t5(3, 64, 1, 64)) == (
        "enc.first", "enc.inner", "enc.last", "dec.first", "dec.inner", "dec.last",
    )  # fmt: skip
    assert layer_kinds(t5(1, 64, 1, 64)) == ("enc.only", "dec.only")
    assert layer_kinds(t5(2, 64, 1, 64))[2:] == ("dec.first", "dec.last")


def test_costs_from_measured_layers() -> None:
    made = training_costs(SPEC, Tuning(LORA), WORK, [_times(1.0), _times(2.0)], Kept(optimizer="adamw"))
    assert made.size == 8
    assert made.optimizer_copies == 2
    one, two = (made.both(device, (0, 8)) for device in range(2))
    rows = 2 * (0.010 + 0.001) * (1.1 + 1.0 + 1.0 + 1.2)
    assert one.per_unit_s == pytest.approx(rows)
    assert two.per_unit_s == pytest.approx(rows / 2)
    assert one.fixed_s == pytest.approx(16 * 1e-4)
    elements = trained_elements(SPEC, Tuning(LORA))
    assert made.update_s(0, (0, 8)) == pytest.approx(8 * 1e-5 + elements * 1e-9)


def test_shared_tables_are_updated_once() -> None:
    full = Tuning(Technique.full)
    made = training_costs(SPEC, full, WORK, [_times()])
    elements = trained_elements(SPEC, full)
    assert made.update_s(0, (0, 8)) == pytest.approx(8 * 1e-5 + elements * 1e-9)


def test_times_that_are_missing() -> None:
    with pytest.raises(UserError, match=r"training times of device 1, cached: none; there is one for enc.first"):
        training_costs(SPEC, Tuning(SIDE), WORK, [_times(), _times(cached=False)], cached=True)


def test_what_times_are_for() -> None:
    purpose = purpose_of(SPEC, Tuning(LORA, rank=4), WORK, Kept())
    assert purpose.sizes == {"rank": 4}
    assert purpose == purpose_of(t5(9, 128, 2, 256), Tuning(LORA, rank=4, reduction=2), WORK, Kept())
    assert purpose != purpose_of(t5(4, 128, 2, 512), Tuning(LORA, rank=4), WORK, Kept())
