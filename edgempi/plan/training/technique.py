"""What each technique trains: its parameters by name, counted from the model's spec.

    full               every weight
    lora               two factors of rank k beside q and v of every attention
    adapter            two bottlenecks in every layer (Houlsby et al., arXiv 1902.00751)
    parallel_adapter   a side network of a block, a downsampler and a gate per layer (LST, arXiv 2206.06522; PAC,
                       arXiv 2408.10746): a transformer block `reduction` times narrower with as many heads

Under the last no gradient enters the backbone, so its activations can be cached. A head of labels is trained by every
technique, a head over the vocabulary by `full` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from math import prod, sqrt
from typing import TypeAlias

from edgempi.errors import UserError
from edgempi.plan.share import inventory
from edgempi.plan.spec import Head, ModelSpec, Stack, is_layer, stack_of


class Technique(StrEnum):
    """How a model is fine-tuned."""

    full = "full"
    lora = "lora"
    adapter = "adapter"
    parallel_adapter = "parallel_adapter"


@dataclass(frozen=True)
class Tuning:
    """A technique with its sizes; those of the other techniques are not read."""

    technique: Technique
    rank: int = 32
    """Of LoRA's factors."""
    bottleneck_reduction: int = 16
    """How many times narrower than the model an adapter's bottleneck is."""
    reduction: int = 8
    """How many times narrower than the model the side network is."""
    down_rank: int | None = None
    """Of the side network's downsamplers; None: dense, 0: fixed, which trains nothing."""
    merge: bool = True
    """Whether the side network's output is added to the backbone's last hidden state, or stands alone."""
    alpha: float = 32.0
    """LoRA's product is multiplied by alpha / rank."""

    @property
    def crosses_backbone(self) -> bool:
        """Whether gradients flow through the backbone."""
        return self.technique is not Technique.parallel_adapter

    def bottleneck(self, width: int) -> int:
        """How wide an adapter is in layers of a width."""
        return max(1, width // self.bottleneck_reduction)


@lru_cache(maxsize=256)
def side_spec(spec: ModelSpec, reduction: int) -> ModelSpec:
    """The side network's stacks as a model of their own; the head is the backbone's.

    Raises:
        UserError: a width, a head's width, its rotary pairs or the MLP's columns are not a multiple of `reduction`.
    """
    return replace(
        spec,
        enc=None if spec.enc is None else _narrow(spec.enc, reduction),
        dec=None if spec.dec is None else _narrow(spec.dec, reduction),
        head=Head(),
    )


def _narrow(stack: Stack, reduction: int) -> Stack:
    sizes = {"width": stack.width, "head_dim": stack.head_dim, "mlp_columns": stack.mlp_columns}
    if stack.rotary is not None:
        sizes["rotary pairs"] = len(stack.rotary.frequencies)
    for what, size in sizes.items():
        if reduction < 1 or size % reduction:
            raise UserError(
                "side network reduction", value=reduction, rule=f"it divides the {what} of a layer, {size}",
                remedy="Choose a smaller power of two",
            )  # fmt: skip
    rotary = stack.rotary
    return replace(
        stack,
        width=stack.width // reduction,
        head_dim=stack.head_dim // reduction,
        mlp_columns=stack.mlp_columns // reduction,
        # Narrower heads have scores of less variance; T5 has no scale, its weights make up for it.
        attention_scales=tuple(s if s == 1.0 else s * sqrt(reduction) for s in stack.attention_scales),
        # Every so manieth pair, so that slow and fast angles are both there.
        rotary=None if rotary is None else replace(rotary, frequencies=rotary.frequencies[::reduction]),
    )


Shape: TypeAlias = tuple[int, ...]


@lru_cache(maxsize=4096)
def trained_shapes(spec: ModelSpec, unit: str, tuning: Tuning) -> dict[str, Shape]:
    """Shapes of all parameters that are trained with a unit, by name; units that share one name it alike."""
    match tuning.technique:
        case Technique.full:
            found = {parameter.name: parameter.shape for parameter in inventory(spec, unit)}
            if spec.enc and spec.dec:  # what BART adds to its logits is a constant, in transformers a buffer
                found.pop("head.out.bias", None)
            return found
        case Technique.parallel_adapter:
            found = dict(_side(spec, unit, tuning))
        case _:
            found = dict(_beside(spec, unit, tuning)) if is_layer(unit) else {}
    if unit == "head" and not spec.head.vocabulary:
        found |= {parameter.name: parameter.shape for parameter in inventory(spec, unit)}
    return found


@lru_cache(maxsize=4096)
def trained(spec: ModelSpec, unit: str, tuning: Tuning) -> dict[str, int]:
    """Elements of every parameter that is trained with a unit, by name."""
    return {name: prod(shape) for name, shape in trained_shapes(spec, unit, tuning).items()}


def trained_elements(spec: ModelSpec, tuning: Tuning) -> int:
    """How many parameters are trained in all, shared ones once."""
    named: dict[str, int] = {}
    for unit in spec.units:
        named |= trained(spec, unit, tuning)
    return sum(named.values())


def _beside(spec: ModelSpec, unit: str, tuning: Tuning) -> Iterator[tuple[str, Shape]]:
    """Of LoRA and Adapters: what is added to one layer."""
    stack = spec.stacks[stack_of(unit)]
    if tuning.technique is Technique.adapter:
        inside = tuning.bottleneck(stack.width)
        for place in ("attention", "mlp"):
            yield from _linear(f"{unit}.{place}.adapter.down", inside, stack.width)
            yield from _linear(f"{unit}.{place}.adapter.up", stack.width, inside)
        return
    for place in ("attention", "cross") if stack.cross else ("attention",):
        for part, heads in (("q", stack.heads), ("v", stack.kv_heads)):
            name = f"{unit}.{place}.{part}.lora"
            yield f"{name}.a", (tuning.rank, stack.width)
            yield f"{name}.b", (heads * stack.head_dim, tuning.rank)


def _side(spec: ModelSpec, unit: str, tuning: Tuning) -> Iterator[tuple[str, Shape]]:
    """Of the side network: its layer, what leads into it, and at the end what leads out."""
    if unit == "head":
        last = spec.stacks[spec.last].width
        yield from _linear("side.up", last, side_spec(spec, tuning.reduction).stacks[spec.last].width)
        return
    side, part = side_spec(spec, tuning.reduction), unit.partition(".")[2]
    wide, narrow = spec.stacks[stack_of(unit)].width, side.stacks[stack_of(unit)].width
    if part != "embed":
        for parameter in inventory(side, unit):
            yield f"side.{parameter.name}", parameter.shape
    if part != "norm":
        name, rank = f"side.{unit}.down", tuning.down_rank
        if rank is None:
            yield from _linear(name, narrow, wide)
        elif rank:
            yield f"{name}.a", (rank, wide)
            yield f"{name}.b", (narrow, rank)
            yield f"{name}.bias", (narrow,)
    if is_layer(unit):
        yield f"side.{unit}.gate", (1,)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)
