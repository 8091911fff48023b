"""Training plans on threads: gradients are those of one process, bytes are the schedule's, and no wait is endless."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.trace import COMPUTE
from edgempi.comm.wire import EXACT, FP32, INT8
from edgempi.errors import UserError
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.executor import Executor
from edgempi.finetune.minibatch import StepResult
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import Reduce, Send, classic_depths, gpipe_depths, schedule, spaced_depths
from edgempi.plan.training.technique import Tuning
from unit.comm.threads import on_ranks
from unit.finetune.toys import FULL, SIDE, ToyTrunk, alone, costs, plan, rows_of, samples, spec, targets

Stages = Sequence[tuple[int, Sequence[int], Sequence[int]]]

BOTH, DECODER, ENCODER = spec(2, 2), spec(0, 4), spec(4, 0)
PLANS: dict[str, tuple[int, Stages, int]] = {
    "standalone": (1, [(4, [0], [])], 3),
    "data": (2, [(4, [0, 1], [1, 1])], 2),
    "data uneven with none": (4, [(4, [0, 1, 2, 3], [5, 0, 1, 2])], 2),
    "pipeline of 2": (2, [(2, [0], []), (2, [1], [])], 3),
    "pipeline of 3, reversed": (3, [(1, [2], []), (2, [1], []), (1, [0], [])], 4),
    "pipeline of 4": (4, [(1, [0], []), (1, [1], []), (1, [2], []), (1, [3], [])], 4),
    "many to one": (3, [(3, [0, 2], [2, 1]), (1, [1], [])], 2),
    "one to many": (4, [(1, [3], []), (3, [0, 1, 2], [1, 0, 3])], 3),
    "hybrid": (4, [(2, [0, 1], [3, 1]), (2, [2, 3], [1, 2])], 2),
    "an idle rank": (3, [(4, [0, 2], [1, 1])], 1),
}


def _train(
    model: Any, tuning: Tuning, size: int, made: Plan, run: Callable[[World, Executor, ToyTrunk], Any], **options: Any
) -> list[Any]:
    """Run something with an executor on every rank."""
    dtype, depths = options.pop("dtype", torch.float64), options.pop("depths", classic_depths(len(made.stages)))
    rows, cached = options.pop("rows", 9), options.pop("cached", False)
    options = {"bucket_bytes": 1, "wire": EXACT, **options}

    def body(world: World) -> Any:
        with torch.inference_mode(False):
            units = next((stage.units for stage in made.stages if world.rank in stage.devices), ())
            trunk = ToyTrunk(model, units, tuning, dtype)
            executor = Executor(world, made, costs(model, tuning, size, cached), trunk, depths, rows, **options)
            found = run(world, executor, trunk)
            executor.close()
            return found

    return on_ranks(size, body)


def _gradients(trunk: ToyTrunk) -> dict[str, Tensor]:
    return {name: tensor.grad.clone() for name, tensor in trunk.trained.tensors.items() if tensor.grad is not None}


@pytest.mark.parametrize("case", PLANS)
@pytest.mark.parametrize("model", [BOTH, DECODER, ENCODER], ids=["both", "decoder", "encoder"])
@pytest.mark.parametrize("tuning", [FULL, SIDE], ids=["full", "side"])
def test_gradients_are_those_of_one_process(case: str, model: Any, tuning: Tuning) -> None:
    size, stages, microbatches = PLANS[case]
    batches = [samples(model, 9, ragged=True), samples(model, 9, ragged=True)[:5]]

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> list[tuple[StepResult, dict[str, Tensor]]]:
        found = []
        for batch in batches:  # the second is shorter, as the last of an epoch
            result = executor.step(len(batch), rows_of(batch), targets(batch))
            found.append((result, _gradients(trunk)))
        return found

    ranks = _train(model, tuning, size, plan(model, stages, microbatches), run)
    for number, batch in enumerate(batches):
        loss_sum, expected = alone(model, tuning, batch, torch.float64)
        assert sum(found[number][0].loss_sum for found in ranks) == pytest.approx(loss_sum, rel=1e-12)
        seen: dict[str, Tensor] = {}
        for rank, found in enumerate(ranks):
            gradients = found[number][1]
            assert bool(gradients) == any(rank in devices for _, devices, _ in stages)
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)
                assert torch.equal(gradient, seen.setdefault(name, gradient))
        assert seen.keys() == expected.keys()
        places = sorted(row for found in ranks for span, _ in found[number][0].outputs for row in range(*span))
        assert places == list(range(len(batch)))


@pytest.mark.parametrize("case", ["pipeline of 3, reversed", "many to one", "one to many", "hybrid"])
@pytest.mark.parametrize(("tuning", "cached"), [(FULL, False), (SIDE, False), (SIDE, True)])
def test_bytes_are_those_of_the_schedule(case: str, tuning: Tuning, cached: bool) -> None:
    size, stages, microbatches = PLANS[case]
    made, batch = plan(BOTH, stages, microbatches), samples(BOTH, 9, ragged=False)
    depths, kept = spaced_depths(len(stages)), _cache(tuning, batch)
    counted = costs(BOTH, tuning, size, cached)
    actions = schedule(made, counted, 9, depths, 100)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> Counter[str]:
        world.traffic.reset()
        read = (lambda rows: lambda unit: _stacked(kept, rows, unit)) if cached else None
        executor.step(9, rows_of(batch), targets(batch), read)
        return Counter(world.traffic.bytes_sent)

    ranks = _train(
        BOTH, tuning, size, made, run,
        dtype=torch.float32, wire=FP32, bucket_bytes=100, depths=depths, cached=cached,
    )  # fmt: skip
    sums: Counter[str] = Counter()
    for rank, sent in enumerate(ranks):
        planned: Counter[str] = Counter()
        for action in actions.get(rank, ()):
            if isinstance(action, Send):
                planned[action.cargo] += action.nbytes
        for cargo in ("activation", "gradient"):
            assert sent[cargo] == planned[cargo], (rank, cargo)
        sums.update({name: n for name, n in sent.items() if name.startswith("sum ")})
        assert set(sent) <= {"activation", "gradient", *sums}
    buckets = {a.bucket for found in actions.values() for a in found if isinstance(a, Reduce)}
    assert dict(sums) == {f"sum {b.name}": 2 * (len(b.devices) - 1) * b.nbytes for b in buckets}


def _cache(tuning: Tuning, batch: Sequence[Any]) -> dict[str, dict[str, Tensor]]:
    """The backbone's activations by sample and unit."""
    kept: dict[str, Tensor] = {}
    ToyTrunk(BOTH, BOTH.units, tuning, torch.float32).forward(rows_of(batch)((0, len(batch))), {}, None, kept)
    return {sample.key: {unit: x[row] for unit, x in kept.items()} for row, sample in enumerate(batch)}


def _stacked(kept: dict[str, dict[str, Tensor]], rows: Rows, unit: str) -> Tensor:
    return torch.stack([kept[key][unit] for key in rows.keys])


def test_cached_steps_equal_those_that_filled_the_cache() -> None:
    size, stages, microbatches = PLANS["hybrid"]
    batch = samples(BOTH, 9, ragged=False)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> tuple[set[str], bool, int]:
        kept: dict[str, dict[str, Tensor]] = {}

        def keep(rows: Rows, found: dict[str, Tensor]) -> None:
            assert not any(x.requires_grad for x in found.values())
            for row, key in enumerate(rows.keys):
                kept[key] = {unit: x[row] for unit, x in found.items()}

        executor.step(9, rows_of(batch), targets(batch), keep=keep)
        filled, before = _gradients(trunk), world.traffic.bytes_sent["activation"]
        executor.step(9, rows_of(batch), targets(batch), read=lambda rows: lambda unit: _stacked(kept, rows, unit))
        same = all(torch.equal(x, filled[name]) for name, x in _gradients(trunk).items())
        return set(kept), same, world.traffic.bytes_sent["activation"] * 3 == before * 4

    ranks = _train(BOTH, SIDE, size, plan(BOTH, stages, microbatches), run)
    for pair in (ranks[:2], ranks[2:]):
        assert pair[0][0] | pair[1][0] == {sample.key for sample in batch}
        assert not pair[0][0] & pair[1][0]
    # A third of the states is the side network's: what crosses then grows by that.
    assert all(same and third for _, same, third in ranks)


@pytest.mark.parametrize("form", ["classic", "spaced", "gpipe"])
def test_the_same_bits_whatever_the_depth_and_from_run_to_run(form: str) -> None:
    size, stages, _ = PLANS["hybrid"]
    depths = {"classic": classic_depths(2), "spaced": spaced_depths(2), "gpipe": gpipe_depths(2, 5)}[form]
    batch = samples(BOTH, 9, ragged=True)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> list[dict[str, Tensor]]:
        found = []
        for pause_s in (0.0, 0.002 * world.rank, 0.002 * (3 - world.rank)):
            time.sleep(pause_s)
            executor.step(9, rows_of(batch), targets(batch))
            found.append(_gradients(trunk))
        return found

    made = plan(BOTH, stages, 4)
    ranks = _train(BOTH, FULL, size, made, run, dtype=torch.float32, wire=FP32, depths=depths)
    reference = _train(BOTH, FULL, size, made, run, dtype=torch.float32, wire=FP32, depths=classic_depths(2))
    for mine, other in zip(ranks, reference, strict=True):
        for found in (*mine, *other):
            assert found.keys() == mine[0].keys()
            assert all(torch.equal(x, mine[0][name]) for name, x in found.items())


def test_evaluation_gives_the_loss_and_leaves_gradients_alone() -> None:
    size, stages, microbatches = PLANS["hybrid"]
    batch = samples(BOTH, 9, ragged=True)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> tuple[StepResult, bool, int]:
        world.traffic.reset()
        result = executor.evaluate(9, rows_of(batch))
        return result, not _gradients(trunk), world.traffic.bytes_sent["gradient"]

    ranks = _train(BOTH, FULL, size, plan(BOTH, stages, microbatches), run)
    loss_sum, _ = alone(BOTH, FULL, batch, torch.float64)
    assert sum(result.loss_sum for result, _, _ in ranks) == pytest.approx(loss_sum, rel=1e-12)
    assert all(untouched and not sent for _, untouched, sent in ranks)


def test_rounded_states_train_nearly_alike() -> None:
    size, stages, microbatches = PLANS["hybrid"]
    batch = samples(BOTH, 9, ragged=True)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> dict[str, Tensor]:
        executor.step(9, rows_of(batch), targets(batch))
        return _gradients(trunk)

    ranks = _train(BOTH, FULL, size, plan(BOTH, stages, microbatches), run, dtype=torch.float32, wire=INT8)
    _, expected = alone(BOTH, FULL, batch, torch.float32)
    errors = [(x - expected[name]).norm() / expected[name].norm() for found in ranks for name, x in found.items()]
    assert 1e-6 < max(errors) < 0.1


def test_a_rank_that_fails_ends_all_others() -> None:
    _, stages, microbatches = PLANS["pipeline of 4"]
    batch = samples(DECODER, 9, ragged=False)

    def body(world: World) -> str:
        with torch.inference_mode(False):
            made = plan(DECODER, stages, microbatches)
            units = made.stages[world.rank].units
            trunk = ToyTrunk(DECODER, units, FULL, torch.float32)
            executor = Executor(world, made, costs(DECODER, FULL, 4), trunk, classic_depths(4), 9)
            trunk.fail_at = "dec.2"
            with pytest.raises((ValueError, RuntimeError)) as failed:
                executor.step(9, rows_of(batch), targets(batch))
            return str(failed.value)

    said = on_ranks(4, body, timeout_s=1.0)
    assert said[2] == "dec.2 fails"
    assert "waits for rank 1 in receive of microbatch 0 of gradient" in said[0]
    assert "waits for rank 2 in receive of microbatch 0 of gradient" in said[1]
    assert "waits for rank 2 in receive of microbatch 0 of activation" in said[3]


def test_schedules_are_checked_when_the_executor_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("edgempi.finetune.executor.check_schedule", lambda *found: seen.append(found))
    batch = samples(DECODER, 9, ragged=False)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> list[int]:
        counts = [len(seen)]
        for rows in (9, 5, 9, 5):
            executor.step(rows, rows_of(batch[:rows]), 1)
            counts.append(len(seen))
        return counts

    assert _train(DECODER, FULL, 1, plan(DECODER, PLANS["standalone"][1], 2), run) == [[1, 1, 2, 2, 2]]


def test_a_trunk_that_trains_something_else_is_refused() -> None:
    def body(world: World) -> str:
        with torch.inference_mode(False), pytest.raises((RuntimeError, UserError)) as refused:
            trunk = ToyTrunk(DECODER, DECODER.units, SIDE, torch.float32)
            Executor(world, plan(DECODER, PLANS["data"][1], 1), costs(DECODER, FULL, 2), trunk, (1,), 4)
        return str(refused.value)

    assert all("where the plan has" in said for said in on_ranks(2, body))


def test_sums_begin_before_the_backward_pass_ends() -> None:
    batch = samples(DECODER, 8, ragged=False)

    def run(world: World, executor: Executor, trunk: ToyTrunk) -> tuple[float, float]:
        world.traffic.trace.start()
        executor.step(8, rows_of(batch), targets(batch))
        events = world.traffic.trace.events
        ends = [event.stop_s for event in events if event.lane == COMPUTE and event.name == "backward 0"]
        sums = [event.start_s for event in events if event.name.startswith("sum stage 0")]
        return min(sums), ends[0]

    made = plan(DECODER, PLANS["data"][1], 1)
    assert all(begun < ended for begun, ended in _train(DECODER, FULL, 2, made, run, rows=8))
