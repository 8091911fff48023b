"""A toy of a trunk: a few products per unit, mixed over rows' real tokens, in a main and a side stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgempi.finetune.data.collate import Rows, collate
from edgempi.finetune.data.samples import Sample
from edgempi.finetune.minibatch import Reader, RowsOf
from edgempi.finetune.transfers import State
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.spec import Embedding, Head, ModelSpec, Stack, is_layer, stack_of
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload

WIDTH, NARROW, VOCABULARY, PAD = 8, 4, 13, 0
FULL, SIDE = Tuning(Technique.full), Tuning(Technique.parallel_adapter, reduction=WIDTH // NARROW)
TOKENS = {"enc": 5, "dec": 3}


def spec(encoder: int, decoder: int) -> ModelSpec:
    """A model of so many layers; of zero, the stack is left out."""

    def stack(layers: int, decodes: bool) -> Stack | None:
        return None if not layers else Stack(
            layers, WIDTH, 2, 2, 4, 16, "relu", Embedding(VOCABULARY, WIDTH), final_norm=True,
            causal=decodes, cross=decodes and bool(encoder),
        )  # fmt: skip

    return ModelSpec("toy", stack(encoder, False), stack(decoder, True), Head(rows=VOCABULARY, vocabulary=True), None)


def shapes(model: ModelSpec, unit: str, tuning: Tuning) -> dict[str, tuple[int, ...]]:
    """What the toy trains at a unit: `table` names are shared by the layers of a stack, `tied` by the ends."""
    side = not tuning.crosses_backbone
    if not is_layer(unit):
        return {} if side or unit.endswith(".norm") else {"tied": (VOCABULARY, WIDTH)}
    if side:
        shared = {f"side.{stack_of(unit)}.table": (NARROW,)}
        return {f"side.{unit}.down": (WIDTH, NARROW), f"side.{unit}.weight": (NARROW, NARROW), **shared}
    return {f"{unit}.weight": (WIDTH, WIDTH), f"{stack_of(unit)}.table": (WIDTH,)}


def values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers that depend on the name alone."""
    generator = torch.Generator().manual_seed(sum(ord(c) * (i + 1) for i, c in enumerate(name)))
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(0.4).to(dtype)


@dataclass
class ToyTrained:
    """Made of the shapes above."""

    by_unit: dict[str, dict[str, Tensor]]
    tensors: dict[str, Tensor]


@dataclass
class ToyLoss:
    """As `finetune/loss.py`."""

    total: Tensor
    outputs: Tensor


class ToyTrunk:
    """See `finetune/trunk.py`."""

    def __init__(self, model: ModelSpec, units: Sequence[str], tuning: Tuning, dtype: torch.dtype) -> None:
        self.spec, self.units, self.tuning = model, tuple(units), tuning
        self.dtype = self.learning_dtype = dtype
        self.fail_at: str | None = None
        tensors: dict[str, Tensor] = {}
        by_unit: dict[str, dict[str, Tensor]] = {}
        for unit in units:
            for name, shape in shapes(model, unit, tuning).items():
                if name not in tensors:
                    tensors[name] = values(name, shape, dtype).requires_grad_()
                by_unit.setdefault(unit, {})[name] = tensors[name]
        self.trained = ToyTrained(by_unit, tensors)

    def forward(
        self, rows: Rows, given: State, read: Reader | None = None, kept: dict[str, Tensor] | None = None
    ) -> Any:
        """A mix over real tokens in each layer makes padding and masks matter."""
        state, side = dict(given), not self.tuning.crosses_backbone
        for unit in self.units:
            if unit == self.fail_at:
                raise ValueError(f"{unit} fails")
            if unit == "head":
                return self._loss(rows, state)
            stack = stack_of(unit)
            if unit.endswith(".embed"):
                table = values("tied", (VOCABULARY, WIDTH), self.dtype) if side else self.trained.tensors["tied"]
                state[stack] = table[rows.batch.ids(stack)]
                if side:
                    state[f"side.{stack}"] = state[stack][..., :NARROW]
            elif unit.endswith(".norm"):
                state[stack] = state[stack] * 1.5
                if stack == "enc" and self.spec.dec is not None:
                    for prefix in ("side.", "") if side else ("",):
                        state[f"{prefix}memory"] = state.pop(f"{prefix}enc")
            else:
                if read is not None:
                    state[stack] = read(unit)
                else:
                    weight = values(f"{unit}.weight", (WIDTH, WIDTH), self.dtype) if side else self._own(unit, "weight")
                    state[stack] = self._layer(rows, state, "", stack, state[stack] @ weight)
                if kept is not None:
                    kept[unit] = state[stack].detach()
                if side:
                    x = state[f"side.{stack}"] @ self._own(unit, "weight") + state[stack] @ self._own(unit, "down")
                    state[f"side.{stack}"] = self._layer(rows, state, "side.", stack, x)
        return {k: v for k, v in state.items() if read is None or k.startswith("side.")}

    def _own(self, unit: str, what: str) -> Tensor:
        prefix = "" if self.tuning.crosses_backbone else "side."
        return self.trained.tensors[f"{prefix}{unit}.{what}"]

    def _layer(self, rows: Rows, state: State, prefix: str, stack: str, x_BSD: Tensor) -> Tensor:
        trained = self.trained.tensors.get(f"{prefix}{stack}.table")
        x = torch.tanh(x_BSD if trained is None else x_BSD + trained)
        x = x + _mean(x, rows.batch.padding(stack))
        memory = state.get(f"{prefix}memory") if stack == "dec" else None
        return x if memory is None else x + _mean(memory, rows.batch.padding("enc"))

    def _loss(self, rows: Rows, state: State) -> ToyLoss:
        name = self.spec.last
        if self.tuning.crosses_backbone:
            logits = state[name] @ self.trained.tensors["tied"].T
        else:
            logits = state[f"side.{name}"] @ values("out", (NARROW, VOCABULARY), self.dtype)
        wanted = rows.labels != -100
        total = torch.nn.functional.cross_entropy(logits[wanted], rows.labels[wanted], reduction="sum")
        return ToyLoss(total, logits.detach().sum((1, 2)))


def _mean(x_BSD: Tensor, padding: Tensor | None) -> Tensor:
    real = torch.ones(x_BSD.shape[:2]) if padding is None else padding
    weight = real.to(x_BSD.dtype)[..., None]
    return (x_BSD * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)


def costs(model: ModelSpec, tuning: Tuning, devices: int, cached: bool = False) -> Costs:
    """The planner's boundary bytes, with the toy's own parameters."""
    found, runs = [], pieces(model)
    work = Workload(1, TOKENS[model.last], TOKENS["enc"])
    names = [{n: s for unit in run for n, s in shapes(model, unit, tuning).items()} for run in runs]
    for layer, named in zip(layer_bytes(model, tuning, work, cached=cached), names, strict=True):
        uses = {name: sum(name in other for other in names) for name in named}
        sizes = {name: 4 * int(np.prod(shape)) for name, shape in named.items()}
        tables = {name: sizes[name] for name in named if uses[name] > 1}
        own = sum(sizes[name] for name in named if name not in tables)
        found.append(replace(layer, trained=own, tables=tables, trains_tables=frozenset(tables)))
    return Costs(runs, tuple(found), (), optimizer_copies=2)


def plan(model: ModelSpec, stages: Sequence[tuple[int, Sequence[int], Sequence[int]]], microbatches: int) -> Plan:
    """Stages of (layers, devices, rows of each)."""
    made, runs, start = [], pieces(model), 0
    for count, devices, shares in stages:
        units = tuple(unit for run in runs[start : start + count] for unit in run)
        several = len(devices) > 1
        rows = tuple(map(float, shares)) if several else ()
        made.append(Stage(units, tuple(devices), PRESETS["data" if several else "single"], rows=rows))
        start += count
    assert start == len(runs)
    return Plan(tuple(made), microbatches=microbatches)


def samples(model: ModelSpec, count: int, ragged: bool) -> list[Sample]:
    """Rows of ids with a label for most tokens of the last stack."""
    random = np.random.default_rng(3)
    found = []
    for number in range(count):
        ids = {}
        for stack in model.stacks:
            tokens = int(random.integers(1, TOKENS[stack] + 1)) if ragged else TOKENS[stack]
            ids[f"{stack}_ids"] = random.integers(1, VOCABULARY, tokens).astype(np.int32)
        labels = ids[f"{model.last}_ids"].copy()
        labels[1:][random.random(len(labels) - 1) < 0.3] = -100
        found.append(Sample(f"{number}", labels, **ids))
    return found


def rows_of(batch: Sequence[Sample]) -> RowsOf:
    """As a loop gives them to the executor."""
    return lambda span: collate(batch, PAD, span)


def targets(batch: Sequence[Sample]) -> int:
    """Labels of all rows."""
    return sum(int((sample.labels != -100).sum()) for sample in batch)


def alone(
    model: ModelSpec, tuning: Tuning, batch: Sequence[Sample], dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    """Loss sum and gradients of one process that takes all rows at once."""
    trunk = ToyTrunk(model, model.units, tuning, dtype)
    loss = trunk.forward(collate(batch, PAD), {})
    (loss.total / targets(batch)).backward()
    return loss.total.item(), {n: x.grad for n, x in trunk.trained.tensors.items() if x.grad is not None}
