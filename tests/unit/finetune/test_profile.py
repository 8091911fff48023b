"""Measuring training: fits that find what a toy takes, and real layers on noise that are given what a stage gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.loss import Loss
from edgempi.finetune.noise import noise_trunk
from edgempi.finetune.optim import Optimizing
from edgempi.finetune.profile import measure_training
from edgempi.finetune.question import Question, entering, random_rows
from edgempi.finetune.techniques.head import task_head
from edgempi.finetune.trunk import Trunk
from edgempi.models.source import read_spec
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.measured import layer_kinds, training_costs
from edgempi.plan.training.sizes import pieces
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload
from models.zoo import FAMILIES, Model, build
from unit.plan.specs import stack
from unit.plan.training.models import t5


def _scaled(spec: ModelSpec) -> ModelSpec:
    """As T5 has it, queries and keys are not scaled."""
    assert spec.enc is not None
    assert spec.dec is not None
    scales = (1.0,) * spec.enc.layers
    return replace(spec, enc=replace(spec.enc, attention_scales=scales), dec=replace(spec.dec, attention_scales=scales))


SPEC = _scaled(t5(4, 32, 2, 48))
WORK = Workload(rows=8, tokens=3, memory_tokens=7)
SIDE = Tuning(Technique.parallel_adapter, reduction=4)
TICK = 0.5


def _question(tuning: Tuning, spec: ModelSpec = SPEC, **more: Any) -> Question:
    settings: dict[str, Any] = {"room_bytes": 1e9, "seconds": 0.0, "counts": (1, 2, 4), **more}
    return Question(spec, tuning, WORK, Optimizing(), torch.float32, **settings)


class _Clock:
    """Goes on when it is told to, and by a tick with every timed call; everything takes twice as long by the wall."""

    slowdown = 2.0

    def __init__(self) -> None:
        self.now = 0.0

    def time(self, call: Callable[[], Any]) -> tuple[Any, float]:
        start = self.now
        result = call()
        self.now += TICK
        return result, self.now - start


class _Later(torch.autograd.Function):
    """The identity, whose backward pass takes time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: _Clock, seconds: float) -> Tensor:
        ctx.clock, ctx.seconds = clock, seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.clock.now += ctx.seconds
        return gradients[0], None, None


class _Toy:
    """Layers that take 2 + 0.5 B forward and 1 + 0.25 B backward each, and a tenth with the cache."""

    dtype = learning_dtype = torch.float32

    def __init__(self, units: tuple[str, ...], scale: float, clock: _Clock) -> None:
        layers = sum(unit.partition(".")[2].isdigit() for unit in units)
        self._seconds, self._clock = layers * scale, clock
        self._weight = torch.ones(5 * layers, requires_grad=True)
        self.trained = SimpleNamespace(tensors={"w": self._weight})
        self._ends = "head" in units

    def forward(self, rows: Rows, given: Mapping[str, Tensor], read: Callable[[str], Tensor] | None = None) -> Any:
        B = rows.batch.rows
        self._clock.now += self._seconds * (2 + 0.5 * B)
        y = _Later.apply(
            self._weight.sum() + sum(x.sum() for x in given.values()), self._clock, self._seconds * (1 + 0.25 * B)
        )
        return SimpleNamespace(total=y) if self._ends else {"enc": y}


def test_lines_are_found() -> None:
    clocks: list[_Clock] = []
    built: list[tuple[tuple[str, ...], bool]] = []

    def clock() -> _Clock:
        return clocks[-1]

    def build(units: tuple[str, ...], backbone: bool) -> _Toy:
        clocks.append(_Clock())
        built.append((units, backbone))
        return _Toy(units, 1.0 if backbone else 0.1, clocks[-1])

    over: list[float] = []
    found = measure_training(build, _question(SIDE), over.append, clock)
    kinds = set(layer_kinds(SPEC))
    assert {phase: set(times) for phase, times in found.times.layers.items()} == {"train": kinds, "cached": kinds}
    for phase, scale in (("train", 1.0), ("cached", 0.1)):
        for kind, layer in found.times.layers[phase].items():
            layers = found.layers[f"{phase} {kind}"]
            # Twice what the clock says: that is how slow the device is.
            assert layer.forward.row_s == pytest.approx(2 * 0.5 * scale)
            assert layer.forward.fixed_s == pytest.approx(2 * (2 * scale + TICK / layers))
            assert layer.backward.row_s == pytest.approx(2 * 0.25 * scale)
            assert layer.backward.fixed_s == pytest.approx(2 * (scale + TICK / layers))
    assert all(off.worst < 1e-6 for name, off in found.residuals.items() if name != "update")
    # A step takes two ticks whatever it updates: for five numbers, two of one layer alone, and one of two together.
    assert TICK < found.times.update.seconds(5) < 2 * TICK
    assert found.slowdown == 2.0
    assert over[-1] == 1.0
    assert [backbone for _, backbone in built] == [True] * 6 + [False] * 6
    # The inner layers of so small a model are run together, as they are read cold in none.
    assert found.layers["train enc.inner"] == 2
    assert built[1][0] == ("enc.1", "enc.2")


def test_memory_bounds_rows_and_layers() -> None:
    big = t5(6, 1024, 16, 4096)
    wide = Workload(rows=16, tokens=1, memory_tokens=128)
    seen: list[int] = []

    def build(units: tuple[str, ...], backbone: bool) -> _Toy:
        clock = _Clock()
        toy = _Toy(units, 1.0, clock)
        forward = toy.forward

        def noted(rows: Rows, given: Mapping[str, Tensor], read: Any = None) -> Any:
            seen.append(rows.batch.rows)
            return forward(rows, given, read)

        toy.forward = noted  # type: ignore[method-assign]
        return toy

    tight = replace(_question(Tuning(Technique.lora), big, counts=(1, 2, 8), room_bytes=260e6), work=wide)
    found = measure_training(build, tight, clock=_Clock)
    assert set(seen) == {1, 2}
    # 107 MB alone, 59 MB more for each other; two hold more than a cache does.
    assert found.layers["train enc.inner"] == 2
    narrow = measure_training(build, replace(tight, room_bytes=255e6, counts=(1, 2)), clock=_Clock)
    assert narrow.layers["train dec.inner"] == 2
    with pytest.raises(UserError, match="memory to measure in: 50 MB; a layer with 2 rows takes"):
        measure_training(build, replace(tight, room_bytes=50e6), clock=_Clock)


@pytest.mark.parametrize("technique", list(Technique))
def test_real_layers_are_given_what_a_stage_gives(technique: Technique) -> None:
    tuning = replace(SIDE, technique=technique, rank=2, bottleneck_reduction=4)
    question = _question(tuning, counts=(1, 2))
    handed: dict[tuple[str, bool], dict[str, tuple[int, ...]]] = {}
    learnt: dict[str, set[bool]] = {}

    def build(units: tuple[str, ...], backbone: bool) -> Trunk:
        before = SPEC.units.index(units[0])
        if before:
            run = next(run for run in pieces(SPEC) if SPEC.units[before - 1] in run)
            trunk = noise_trunk(SPEC, run, tuning, torch.float32)
            handed[units[0], not backbone] = trunk.boundary(random_rows(SPEC, WORK, 2), cached=not backbone)
        found = noise_trunk(SPEC, units, tuning, torch.float32, backbone)
        forward = found.forward

        def noted(rows: Rows, given: dict[str, Tensor], *more: Any) -> Any:
            for name, x in given.items():
                learnt.setdefault(name, set()).add(x.requires_grad)
            return forward(rows, given, *more)

        found.forward = noted  # type: ignore[method-assign]
        return found

    found = measure_training(build, question)
    assert len(handed) == 5 * len(question.phases)
    # Gradients go as far back as in a run.
    assert {"enc", "dec", "memory"} <= learnt.keys()
    assert all(which == {name.startswith("side.") or tuning.crosses_backbone} for name, which in learnt.items())
    for (unit, cached), shapes in handed.items():
        given = entering(question, unit, 2, cached)
        assert list(given.items()) == list(shapes.items())
    for phase in question.phases:
        for kind, layer in found.times.layers[phase].items():
            assert layer.forward.seconds(2) > 0, (phase, kind)
            assert layer.backward.seconds(2) > 0, (phase, kind)
    assert found.times.update.seconds(100) > 0
    costs = training_costs(SPEC, tuning, WORK, [found.times], cached="cached" in question.phases)
    assert costs.both(0, (0, costs.size)).seconds(2) > 0


def test_rows_for_every_head() -> None:
    labels = replace(t5(2, 32, 2, 48), dec=None, head=replace(SPEC.head, vocabulary=False, rows=3, select="first"))
    work = Workload(tokens=6)
    rows = random_rows(labels, work, 4)
    assert rows.labels.shape == (4,)
    assert rows.labels.dtype == torch.int64
    assert rows.batch.enc_ids is not None
    assert rows.batch.enc_ids.shape == (4, 6)
    score = replace(labels, head=replace(labels.head, rows=1))
    assert random_rows(score, work, 4).labels.dtype == torch.float32
    decoder = ModelSpec("gpt2", None, stack(causal=True), SPEC.head, None)
    assert random_rows(decoder, work, 4).labels.shape == (4, 6)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.name)
def test_noise_stands_for_every_family(model: Model, tmp_path: Path) -> None:
    build(model, tmp_path)
    spec, tuning = read_spec(tmp_path), Tuning(Technique.lora, rank=2)
    heads = [None] if model.two_stacks else [None, 2]
    for labels in heads:
        tuned = task_head(spec, labels).applied(spec)
        trunk = noise_trunk(tuned, tuned.units, tuning, torch.float32)
        loss = trunk.forward(random_rows(tuned, replace(WORK, tokens=6), 2), {})
        assert isinstance(loss, Loss)
        assert loss.total.isfinite()
        loss.total.backward()
        assert all(tensor.grad is not None for tensor in trunk.trained.tensors.values())
