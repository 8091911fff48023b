"""The arithmetic of one sample by technique, counted from the spec: forward, backward, and the step of the optimizer.

Counted are matrix products and the two products of attention, two operations per multiply and add. What works element
by element (norms, activations, softmax, gates) is left out; with caches and lookups it is a few per cent. A backward
pass has a product for the gradient of a linear's input, where anything before it is trained, and one for that of its
weight, where it is trained itself; attention has four products backward for two forward.

Source: PAC (arXiv 2408.10746), which reports floating point operations by technique; counts here are exact for the
spec. Notation: S tokens, h width, H heads of D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgempi.plan.spec import Head, ModelSpec, Stack, is_layer, stack_of
from edgempi.plan.training.technique import Technique, Tuning, side_spec, trained_elements
from edgempi.plan.workload import Workload

OPTIMIZER_FLOPS = {"sgd": 2, "momentum": 4, "adamw": 14}
"""Operations for each trained number in a step: AdamW's are decay 1, first moment 3, second 4, denominator 3, update 3.
"""
WHOLE = Tuning(Technique.full)


@dataclass(frozen=True)
class Flops:
    """Operations of one sample."""

    forward: int = 0
    backward: int = 0

    @property
    def both(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def sample_flops(spec: ModelSpec, tuning: Tuning, work: Workload, cached: bool = False) -> Flops:
    """Operations of one sample through the whole model.

    Args:
        spec: the model.
        tuning: the technique.
        work: tokens of the sample; its rows are not read.
        cached: whether the backbone's activations come from the cache: its head alone is run.
    """
    return sum(unit_flops(spec, tuning, work, cached).values(), Flops())


def unit_flops(spec: ModelSpec, tuning: Tuning, work: Workload, cached: bool = False) -> dict[str, Flops]:
    """Operations of one sample by unit, what stands beside a unit included."""
    if tuning.crosses_backbone:
        return _Pass(spec, tuning, work).units()
    backbone = _Pass(spec, None, work).units()
    side = _Pass(side_spec(spec, tuning.reduction), WHOLE, work, enters=True).units()
    found = {}
    for unit in spec.units:
        found[unit] = side[unit] + sum(_joints(spec, unit, tuning, work), Flops())
        if unit == "head":
            found[unit] += _head(spec, tuning, work)
        elif not cached:
            found[unit] += backbone[unit]
    return found


def update_flops(spec: ModelSpec, tuning: Tuning, optimizer: str = "adamw") -> int:
    """Operations of one optimizer step; see `OPTIMIZER_FLOPS` for its names."""
    return OPTIMIZER_FLOPS[optimizer] * trained_elements(spec, tuning)


class _Pass:
    """A walk through a model's units, in which it is known whether anything before has been trained.

    Args:
        spec: the model.
        tuning: what is trained in it; None: nothing.
        work: tokens of the sample.
        enters: whether what enters the stacks is the output of trained layers.
    """

    def __init__(self, spec: ModelSpec, tuning: Tuning | None, work: Workload, enters: bool = False) -> None:
        self._spec, self._tuning, self._work, self._enters = spec, tuning, work, enters
        self._technique = None if tuning is None else tuning.technique
        self._whole = self._technique is Technique.full
        self._live = False
        """Whether gradients are wanted for the stream."""
        self._memory_live = False

    def units(self) -> dict[str, Flops]:
        """Of every unit, in order."""
        return {unit: self._unit(unit) for unit in self._spec.units}

    def _unit(self, unit: str) -> Flops:
        if unit == "head":
            return _head(self._spec, self._tuning, self._work)
        name = stack_of(unit)
        stack = self._spec.stacks[name]
        if is_layer(unit):
            return self._layer(stack, int(unit.partition(".")[2]), self._work.of(self._spec, name))
        if unit.endswith(".norm"):
            return Flops()
        self._memory_live, self._live = self._live, self._whole or self._enters
        wide = stack.embedding.width
        # The side network's stacks are entered through its downsamplers, not through a table.
        if wide == stack.width or self._enters:
            return Flops()
        return _linear(self._work.of(self._spec, name), stack.width, wide, self._whole, self._whole)

    def _layer(self, stack: Stack, layer: int, tokens: int) -> Flops:
        window = (stack.windows or (None,) * stack.layers)[layer]
        total = self._attention(stack, tokens, tokens, _pairs(tokens, stack.causal, window), cross=False)
        total += self._adapter(stack, tokens)
        if stack.cross:
            memory = self._work.memory_tokens
            total += self._attention(stack, tokens, memory, tokens * memory, cross=True)
        h, columns = stack.width, stack.mlp_columns
        total += _linear(tokens, columns * (2 if stack.gated else 1), h, self._live, self._whole)
        total += _linear(tokens, h, columns, self._live or self._whole, self._whole)
        self._live |= self._whole
        return total + self._adapter(stack, tokens)

    def _attention(self, stack: Stack, tokens: int, reach: int, pairs: int, cross: bool) -> Flops:
        h, queries, keys = stack.width, stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
        there = self._memory_live if cross else self._live
        total = _linear(tokens, queries, h, self._live, self._whole)
        total += _linear(reach, keys, h, there, self._whole) + _linear(reach, keys, h, there, self._whole)
        total += self._lora(tokens, queries, h, self._live) + self._lora(reach, keys, h, there)
        beside = self._whole or self._technique is Technique.lora
        live = self._live or there or beside
        core = 4 * pairs * queries
        total += Flops(core, 2 * core if live else 0)
        total += _linear(tokens, h, queries, live, self._whole)
        self._live = live
        return total

    def _lora(self, tokens: int, outputs: int, inputs: int, live: bool) -> Flops:
        if self._tuning is None or self._technique is not Technique.lora:
            return Flops()
        rank = self._tuning.rank
        return _linear(tokens, rank, inputs, live, True) + _linear(tokens, outputs, rank, True, True)

    def _adapter(self, stack: Stack, tokens: int) -> Flops:
        if self._tuning is None or self._technique is not Technique.adapter:
            return Flops()
        inside = self._tuning.bottleneck(stack.width)
        total = _linear(tokens, inside, stack.width, self._live, True) + _linear(
            tokens, stack.width, inside, True, True
        )
        self._live = True
        return total


def _joints(spec: ModelSpec, unit: str, tuning: Tuning, work: Workload) -> Iterator[Flops]:
    """What leads from the backbone into the side network beside a unit, and out of it at the head."""
    name = spec.last if unit == "head" else stack_of(unit)
    wide = spec.stacks[name].width
    narrow, tokens, rank = wide // tuning.reduction, work.of(spec, name), tuning.down_rank
    if unit == "head":
        yield _linear(_asked(spec.head, tokens), wide, narrow, True, True)
    elif unit.endswith(".norm"):
        return
    elif not rank:  # a fixed downsampler, of rank 0, is a product too; where it was taken before caching it is done
        yield _linear(tokens, narrow, wide, False, rank is None)
    else:
        yield _linear(tokens, rank, wide, False, True)
        yield _linear(tokens, narrow, rank, True, True)


def _head(spec: ModelSpec, tuning: Tuning | None, work: Workload) -> Flops:
    """Of the head; a head of labels is trained by every technique, one over the vocabulary by `full` alone."""
    head, h = spec.head, spec.stacks[spec.last].width
    if not head.rows:
        return Flops()
    tokens = _asked(head, work.of(spec, spec.last))
    learns = tuning is not None and (tuning.technique is Technique.full or not head.vocabulary)
    live = tuning is not None
    dense = _linear(tokens, h, h, live, learns) if head.dense else Flops()
    projected = _linear(tokens, head.project_width, h, live, learns) if head.project_width else Flops()
    return dense + projected + _linear(tokens, head.rows, head.project_width or h, live, learns)


def _asked(head: Head, tokens: int) -> int:
    """How many tokens of a sample the head reads."""
    return tokens if head.select == "all" else 1


def _linear(tokens: int, outputs: int, inputs: int, live: bool, trained: bool) -> Flops:
    """A linear layer: backward as many operations for its input, where that is wanted, and for its weight."""
    once = 2 * tokens * outputs * inputs
    return Flops(once, once * (live + trained))


def _pairs(tokens: int, causal: bool, window: int | None) -> int:
    """How many keys the queries of a sample see in all."""
    most = tokens if window is None else window
    return sum(min(query + 1, most) for query in range(tokens)) if causal else tokens * tokens
