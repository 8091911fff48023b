"""The bytes of each layer in training, by technique: kept, stored for the backward pass, handed on, cached.

A model is planned layer by layer; an embedding belongs to the layer after it, a final norm and the head to the layer
before. Stored activations are what automatic differentiation keeps of one sequence: inputs of trained linears, queries,
keys, values, attention probabilities, and what activations and norms need.

PAC (arXiv 2408.10746): boundaries carry the main and the side state forward, the side gradient backward.
Notation: S tokens, h width, H heads of D.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from edgempi.plan.flow import carried
from edgempi.plan.memory import ITEM_BYTES
from edgempi.plan.share import inventory
from edgempi.plan.spec import ModelSpec, Stack, is_layer, stack_of
from edgempi.plan.training.technique import Technique, Tuning, side_spec, trained
from edgempi.plan.workload import Workload

GRADIENT_BYTES = 4
"""Trained parameters, their gradients and the optimizer's state are fp32 whatever the backbone is kept in; so are the
side network's activations, and those of a model that is trained in full."""


@dataclass(frozen=True)
class LayerBytes:
    """One layer with the ends that go with it, in bytes.

    Attributes:
        frozen: weights that are not trained.
        trained: parameters that are.
        tables: weights by name that other layers read as well; a device keeps each once.
        trains_tables: which of `tables` are trained.
        stored: activations kept from forward to backward, of one row.
        workspace: of the tensors that pass while it runs, of one row.
        forward: what is handed to the next layer where a stage ends here, of one row.
        backward: what comes back for it; zero where no gradient does.
        cache: of the backbone's activations that are cached, of one row.
    """

    frozen: int = 0
    trained: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)
    trains_tables: frozenset[str] = frozenset()
    stored: int = 0
    workspace: int = 0
    forward: int = 0
    backward: int = 0
    cache: int = 0


def pieces(spec: ModelSpec) -> tuple[tuple[str, ...], ...]:
    """The units of each layer with the ends that go with it: what a stage takes whole or not at all."""
    runs: list[list[str]] = []
    pending: list[str] = []
    for unit in spec.units:
        if is_layer(unit):
            runs.append([*pending, unit])
            pending = []
        elif unit.endswith(".embed"):
            pending.append(unit)
        else:
            runs[-1].append(unit)
    return tuple(map(tuple, runs))


def layer_bytes(
    spec: ModelSpec,
    tuning: Tuning,
    work: Workload,
    weight_dtype: str = "fp32",
    cache_bytes: float = 4.0,
    cached: bool = False,
    probabilities: bool = True,
) -> tuple[LayerBytes, ...]:
    """The bytes of every layer of `pieces(spec)`.

    Args:
        spec: the model.
        tuning: the technique.
        work: tokens of a row: `tokens` of the stack that the head reads, `memory_tokens` of the encoder beside it.
        weight_dtype: of frozen weights and of activations.
        cache_bytes: of one cached element, scales and a projection before caching included.
        cached: whether the backbone's activations come from the cache, and it is not there but for its head.
        probabilities: whether attention probabilities are kept for the backward pass, or worked out again.
    """
    runs, item = pieces(spec), GRADIENT_BYTES if tuning.technique is Technique.full else ITEM_BYTES[weight_dtype]
    backbone = [_backbone(spec, run, tuning, item, cached) for run in runs]
    learnt = [{k: n * GRADIENT_BYTES for unit in run for k, n in trained(spec, unit, tuning).items()} for run in runs]
    uses = Counter(name for named in (*backbone, *learnt) for name in named)
    found = []
    for place, run in enumerate(runs):
        following = runs[place + 1][0] if place + 1 < len(runs) else None
        forward, backward = (0, 0) if following is None else _handed(spec, following, tuning, work, item, cached)
        shared = {name for name in (*backbone[place], *learnt[place]) if uses[name] > 1}
        found.append(
            LayerBytes(
                frozen=sum(n for name, n in backbone[place].items() if name not in shared),
                trained=sum(n for name, n in learnt[place].items() if name not in shared),
                tables={name: n for name, n in (*backbone[place].items(), *learnt[place].items()) if name in shared},
                trains_tables=frozenset(shared & set(learnt[place])),
                stored=sum(_stored(spec, unit, tuning, work, item, probabilities) for unit in run),
                workspace=max(_workspace(spec, unit, tuning, work, item, cached) for unit in run),
                forward=forward,
                backward=backward,
                cache=round(sum(_cached_elements(spec, unit, tuning, work) for unit in run) * cache_bytes),
            )
        )
    return tuple(found)


def _backbone(spec: ModelSpec, run: tuple[str, ...], tuning: Tuning, item: int, cached: bool) -> dict[str, int]:
    """Bytes of the weights of a run that are not trained, by name."""
    kept = [unit for unit in run if not cached or unit == "head"]
    named = {p.name: prod(p.shape) * item for unit in kept for p in inventory(spec, unit)}
    return {name: n for name, n in named.items() if all(name not in trained(spec, unit, tuning) for unit in kept)}


def _handed(
    spec: ModelSpec, following: str, tuning: Tuning, work: Workload, item: int, cached: bool
) -> tuple[int, int]:
    """Bytes that cross the boundary before `following`, forward and backward, of one row."""
    wide = sum(
        work.of(spec, name) * spec.stacks[name].width
        for name in ("enc" if stream == "memory" else stream for stream in carried(spec, following, False))
    )
    if tuning.crosses_backbone:
        return wide * item, wide * item
    narrow = wide // tuning.reduction
    beside = narrow * GRADIENT_BYTES
    return beside if cached else wide * item + beside, beside


def _cached_elements(spec: ModelSpec, unit: str, tuning: Tuning, work: Workload) -> int:
    """Elements of the backbone's activations that the side network reads at a unit, of one row."""
    if tuning.crosses_backbone:
        return 0
    name = spec.last if unit == "head" else stack_of(unit)
    reads = tuning.merge if unit == "head" else not unit.endswith(".norm")
    return work.of(spec, name) * spec.stacks[name].width if reads else 0


def _stored(spec: ModelSpec, unit: str, tuning: Tuning, work: Workload, item: int, probabilities: bool) -> int:
    """Bytes of activations kept for the backward pass of a unit, of one row."""
    if unit == "head":
        stack, asked = spec.stacks[spec.last], work.of(spec, spec.last) if spec.head.select == "all" else 1
        side = 0 if tuning.crosses_backbone else stack.width // tuning.reduction
        # Logits and their gradient are fp32.
        return asked * (GRADIENT_BYTES * (2 * spec.head.rows + side) + item * stack.width)
    name, _, part = unit.partition(".")
    stack, tokens = spec.stacks[name], work.of(spec, name)
    memory = work.memory_tokens if stack.cross else 0
    if tuning.crosses_backbone:
        if not part.isdigit():
            return tokens * stack.width * item
        return _layer_stored(stack, tokens, memory, tuning, probabilities) * item
    narrow = side_spec(spec, tuning.reduction).stacks[name]
    read = tokens * stack.width if part != "norm" and tuning.down_rank != 0 else 0  # the downsampler's input
    read *= item  # as the backbone gave it
    if not part.isdigit():
        return tokens * narrow.width * GRADIENT_BYTES + read
    mixed = 2 * tokens * narrow.width  # the two sides of the gate
    inside = _layer_stored(narrow, tokens, memory, Tuning(Technique.full), probabilities)
    return (mixed + inside) * GRADIENT_BYTES + read


def _layer_stored(stack: Stack, tokens: int, memory: int, tuning: Tuning, probabilities: bool) -> int:
    """Elements that one layer keeps of one row."""
    h, queries, keys = stack.width, stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    technique = tuning.technique
    whole = technique is Technique.full
    # An attention keeps its norm's input, queries and their result; keys and values of what it attends to.
    reach = [tokens, *([memory] if stack.cross else [])]
    kept_heads = stack.heads if probabilities else 0
    attention = sum(
        tokens * (h + 2 * queries) + 2 * attended * keys + kept_heads * tokens * attended for attended in reach
    )
    reads = 1 if whole or technique is Technique.lora else 0  # the normed input, for the weights' gradients
    attention += reads * tokens * h * len(reach)
    if technique is Technique.lora:
        attention += 2 * tuning.rank * tokens * len(reach)
    columns = stack.mlp_columns * (3 if stack.gated else 1)
    mlp = tokens * (h + columns)
    if whole:  # the inputs of both linears; ReLU keeps what the second one reads
        mlp += tokens * (h + (0 if stack.activation == "relu" and not stack.gated else stack.mlp_columns))
    if technique is Technique.adapter:
        mlp += 2 * tokens * (h + 2 * tuning.bottleneck(h))
    return attention + mlp


def _workspace(spec: ModelSpec, unit: str, tuning: Tuning, work: Workload, item: int, cached: bool) -> int:
    """Bytes of the tensors that pass at once while a unit runs, of one row."""
    if not is_layer(unit):
        return 0
    name = stack_of(unit)
    stack = side_spec(spec, tuning.reduction).stacks[name] if cached else spec.stacks[name]
    reach = max(work.of(spec, name), work.memory_tokens if stack.cross else 0)
    qkv = 4 * stack.heads * stack.head_dim + stack.heads * reach
    elements = work.of(spec, name) * (3 * stack.width + max(qkv, stack.mlp_columns * (3 if stack.gated else 1)))
    return elements * (GRADIENT_BYTES if cached else item)
