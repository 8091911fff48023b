"""What one device owns: the plan's counts as ranges, and the exact weights that follow from them.

`inventory` lists the weights a model is made of, `holdings` the slices of them that a device's share names. Loading
reads just these, the cost model sums just these, and a checkpoint is checked against just these.

Parameters carry edgempi's own names (`dec.3.attention.q.weight`); a family says where they stand in a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from math import prod

from edgempi.plan.apportion import Span, spans
from edgempi.plan.plan import Block, Plan, Stage, Table
from edgempi.plan.spec import ModelSpec, Stack, is_layer, stack_of


class Axis(StrEnum):
    """What the shared dimension of a weight counts."""

    heads = "heads"
    kv_heads = "kv_heads"
    mlp_columns = "mlp_columns"
    vocabulary = "vocabulary"
    none = "none"


@dataclass(frozen=True)
class Parameter:
    """One weight of the whole model.

    `axis` says what dimension `dim` counts, in units of `grain` elements (a head is `head_dim` rows); weights that
    every sharing device keeps whole (norms, output biases) have `Axis.none`.
    """

    name: str
    shape: tuple[int, ...]
    axis: Axis = Axis.none
    dim: int = 0
    grain: int = 1


@dataclass(frozen=True)
class Holding:
    """The slice of a parameter that a device owns: all of it, but `start:stop` along the shared dimension."""

    parameter: Parameter
    span: Span

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the slice."""
        shape = list(self.parameter.shape)
        shape[self.parameter.dim] = self.span[1] - self.span[0]
        return tuple(shape)

    @property
    def elements(self) -> int:
        """How many numbers the slice holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class DeviceShare:
    """One device's part of its stage, as ranges into the whole model."""

    device: int
    stage: Stage
    heads: dict[str, Span]
    kv_heads: dict[str, Span]
    mlp_columns: dict[str, Span]
    embedding: Span
    head: Span


def device_share(plan: Plan, spec: ModelSpec, device: int) -> DeviceShare:
    """The ranges that `plan` gives to `device`; a block that is not split belongs whole to each device of its stage."""
    stage = plan.stage_of(device)
    here = stage.position(device)
    modes = stage.modes
    heads, columns = {}, {}
    for name, stack in spec.stacks.items():
        shared_heads = modes.attention == Block.tensor and name in stage.heads
        shared_columns = modes.mlp == Block.tensor and name in stage.mlp_columns
        heads[name] = spans(stage.heads[name])[here] if shared_heads else (0, stack.heads)
        columns[name] = spans(stage.mlp_columns[name])[here] if shared_columns else (0, stack.mlp_columns)
    groups = {name: spec.stacks[name].group for name in heads}
    rows = spans(stage.vocabulary)[here] if stage.vocabulary else (0, 0)
    vocabulary = spec.stacks[spec.last].embedding.vocabulary
    split_head = modes.head == Table.vocabulary and spec.head.vocabulary
    return DeviceShare(
        device=device,
        stage=stage,
        heads=heads,
        kv_heads={name: (a // groups[name], b // groups[name]) for name, (a, b) in heads.items()},
        mlp_columns=columns,
        embedding=rows if modes.embedding == Table.vocabulary else (0, vocabulary),
        head=rows if split_head else (0, spec.head.rows),
    )


def holdings(share: DeviceShare, spec: ModelSpec) -> dict[str, Holding]:
    """The slices that a device keeps, by parameter name, each once.

    A tied head and token table are one parameter: where a device needs different rows for the two, it keeps the
    stretch that covers both.
    """
    found: dict[str, Holding] = {}
    for unit in share.stage.units:
        for parameter in inventory(spec, unit):
            span = _span(parameter, share, unit)
            if parameter.name in found:
                start, stop = found[parameter.name].span
                span = (min(start, span[0]), max(stop, span[1]))
            found[parameter.name] = Holding(parameter, span)
    return found


def _span(parameter: Parameter, share: DeviceShare, unit: str) -> Span:
    stack = unit.partition(".")[0]
    whole = (0, parameter.shape[parameter.dim])
    match parameter.axis:
        case Axis.heads:
            start, stop = share.heads[stack]
        case Axis.kv_heads:
            start, stop = share.kv_heads[stack]
        case Axis.mlp_columns:
            start, stop = share.mlp_columns[stack]
        case Axis.vocabulary:
            start, stop = share.head if unit == "head" else share.embedding
        case Axis.none:
            return whole
    return (start * parameter.grain, stop * parameter.grain)


def with_first_layers(stage: Stage) -> Stage:
    """The stage with the first of each stack's layers alone: layers are alike, and planners look at many plans."""
    return replace(stage, units=_first_layers(stage.units)[0])


def layer_counts(units: tuple[str, ...]) -> Mapping[str, int]:
    """How many layers of each stack are among `units`."""
    return _first_layers(units)[1]


@lru_cache(maxsize=1024)
def _first_layers(units: tuple[str, ...]) -> tuple[tuple[str, ...], Mapping[str, int]]:
    counts: Counter[str] = Counter()
    kept = []
    for unit in units:
        if is_layer(unit):
            counts[stack_of(unit)] += 1
        if not is_layer(unit) or counts[stack_of(unit)] == 1:
            kept.append(unit)
    return tuple(kept), dict(counts)


@lru_cache(maxsize=4096)
def inventory(spec: ModelSpec, unit: str) -> tuple[Parameter, ...]:
    """The weights of one unit of the whole model."""
    return tuple(_inventory(spec, unit))


def _inventory(spec: ModelSpec, unit: str) -> Iterator[Parameter]:
    if unit == "head":
        yield from _head(spec)
        return
    name, _, part = unit.partition(".")
    stack = spec.stacks[name]
    match part:
        case "embed":
            yield from _embedding(spec, name, stack)
        case "norm":
            yield from _norm(f"{unit}", stack, stack.width)
        case _:
            yield from _layer(name, unit, stack)


def _norm(name: str, stack: Stack, width: int) -> Iterator[Parameter]:
    if stack.norm_affine:
        yield Parameter(f"{name}.weight", (width,))
        if stack.norm == "layer":
            yield Parameter(f"{name}.bias", (width,))


def _embedding(spec: ModelSpec, name: str, stack: Stack) -> Iterator[Parameter]:
    embedding = stack.embedding
    yield Parameter(table_name(spec, name), (embedding.vocabulary, embedding.width), Axis.vocabulary)
    if embedding.width != stack.width:
        yield Parameter(f"{name}.embed.project.weight", (stack.width, embedding.width))
    if embedding.positions:
        yield Parameter(f"{name}.embed.positions.weight", (embedding.positions, stack.width))
    if embedding.types:
        yield Parameter(f"{name}.embed.types.weight", (embedding.types, stack.width))
    if embedding.norm:
        yield from _norm(f"{name}.embed.norm", stack, stack.width)


def table_name(spec: ModelSpec, stack: str) -> str:
    """The name of a stack's token table: the encoder's where the two share one."""
    return f"{'enc' if spec.stacks[stack].embedding.shared else stack}.embed.tokens.weight"


def head_name(spec: ModelSpec) -> str:
    """The name of the head's output weight: the last stack's token table where they are tied."""
    return table_name(spec, spec.last) if spec.head.tied else "head.out.weight"


def _layer(stack_name: str, unit: str, stack: Stack) -> Iterator[Parameter]:
    yield from _attention(f"{unit}.attention", stack)
    if stack.cross:
        yield from _attention(f"{unit}.cross", stack)
    if stack.relative:
        shape = (stack.relative.buckets, stack.heads)
        yield Parameter(f"{stack_name}.relative.weight", shape, Axis.heads, dim=1)
    yield from _norm(f"{unit}.mlp.norm", stack, stack.width)
    columns = stack.mlp_columns
    for name in ("gate", "up") if stack.gated else ("up",):
        yield Parameter(f"{unit}.mlp.{name}.weight", (columns, stack.width), Axis.mlp_columns)
        if stack.mlp_bias:
            yield Parameter(f"{unit}.mlp.{name}.bias", (columns,), Axis.mlp_columns)
    yield Parameter(f"{unit}.mlp.down.weight", (stack.width, columns), Axis.mlp_columns, dim=1)
    if stack.mlp_bias:
        yield Parameter(f"{unit}.mlp.down.bias", (stack.width,))


def _attention(name: str, stack: Stack) -> Iterator[Parameter]:
    size = stack.head_dim
    yield from _norm(f"{name}.norm", stack, stack.width)
    for part, axis, count in (
        ("q", Axis.heads, stack.heads),
        ("k", Axis.kv_heads, stack.kv_heads),
        ("v", Axis.kv_heads, stack.kv_heads),
    ):
        yield Parameter(f"{name}.{part}.weight", (count * size, stack.width), axis, grain=size)
        if stack.qkv_bias:
            yield Parameter(f"{name}.{part}.bias", (count * size,), axis, grain=size)
    if stack.qk_norm:
        yield Parameter(f"{name}.q_norm.weight", (size,))
        yield Parameter(f"{name}.k_norm.weight", (size,))
    yield Parameter(f"{name}.out.weight", (stack.width, stack.heads * size), Axis.heads, dim=1, grain=size)
    if stack.out_bias:
        yield Parameter(f"{name}.out.bias", (stack.width,))


def _head(spec: ModelSpec) -> Iterator[Parameter]:
    head, stack = spec.head, spec.stacks[spec.last]
    if head.dense:
        yield Parameter("head.dense.weight", (stack.width, stack.width))
        yield Parameter("head.dense.bias", (stack.width,))
    if head.dense_norm:
        yield from _norm("head.norm", stack, stack.width)
    width = head.project_width or stack.width
    if head.project_width:
        yield Parameter("head.project.weight", (width, stack.width))
    if head.rows:
        axis = Axis.vocabulary if head.vocabulary else Axis.none
        yield Parameter(head_name(spec), (head.rows, width), axis)
        if head.bias:
            yield Parameter("head.out.bias", (head.rows,), axis)
