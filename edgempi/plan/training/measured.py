"""From measured times of a few layers to the costs of a whole model on every device.

Layers of a stack are alike: its first one stands with the embedding, its last one with the final norm and what follows
the stack, and one inner layer for all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgempi.cluster.training_times import MEASURE, LayerTime, Purpose, RowTime, Size, TrainingTimes
from edgempi.errors import UserError
from edgempi.plan.balance import Cost
from edgempi.plan.spec import ModelSpec, is_layer, stack_of
from edgempi.plan.training.costs import Costs, LayerTimes
from edgempi.plan.training.sizes import GRADIENT_BYTES, layer_bytes, pieces
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload

SIZES: Mapping[Technique, tuple[str, ...]] = {
    Technique.full: (),
    Technique.lora: ("rank",),
    Technique.adapter: ("bottleneck_reduction",),
    Technique.parallel_adapter: ("reduction", "down_rank", "merge"),
}
"""The sizes of each technique."""
OPTIMIZER_COPIES = {"sgd": 0, "momentum": 1, "adamw": 2}
"""Numbers that an optimizer keeps for each trained one."""


@dataclass(frozen=True)
class Kept:
    """In what form things are kept while a model is trained.

    Attributes:
        weight_dtype: of frozen weights and of activations.
        optimizer: a name of `OPTIMIZER_COPIES`.
        cache_bytes: of one cached element, scales and a projection included.
        probabilities: whether attention probabilities are kept for the backward pass.
    """

    weight_dtype: str = "fp32"
    optimizer: str = "adamw"
    cache_bytes: float = 4.0
    probabilities: bool = True


def layer_kinds(spec: ModelSpec) -> tuple[str, ...]:
    """The kind of each layer of `pieces(spec)`: `enc.first`, `enc.inner`, `enc.last`, or `enc.only`, and so on."""
    found = []
    for run in pieces(spec):
        unit = next(unit for unit in run if is_layer(unit))
        name, layer = stack_of(unit), int(unit.partition(".")[2])
        last = spec.stacks[name].layers - 1
        found.append(f"{name}.{'only' if not last else {0: 'first', last: 'last'}.get(layer, 'inner')}")
    return tuple(found)


def purpose_of(spec: ModelSpec, tuning: Tuning, work: Workload, kept: Kept) -> Purpose:
    """What times must have been measured for, to hold here."""
    return Purpose(
        model=widths(spec),
        technique=tuning.technique.value,
        sizes=sizes(tuning),
        tokens=work.tokens,
        memory_tokens=work.memory_tokens,
        weight_dtype=kept.weight_dtype,
        optimizer=kept.optimizer,
    )


def sizes(tuning: Tuning) -> dict[str, Size]:
    """The sizes of a technique, those of the others left out."""
    return {name: getattr(tuning, name) for name in SIZES[tuning.technique]}


def widths(spec: ModelSpec) -> str:
    """A model's family and widths in a line; models that differ in their layers' number alone share it."""
    stacks = (
        f"{name} {stack.width} wide, {stack.heads}/{stack.kv_heads} heads of {stack.head_dim}, "
        f"{stack.mlp_columns} columns"
        for name, stack in spec.stacks.items()
    )
    return "; ".join([spec.family, *stacks, f"head of {spec.head.rows}"])


def training_costs(
    spec: ModelSpec,
    tuning: Tuning,
    work: Workload,
    times: Sequence[TrainingTimes],
    kept: Kept | None = None,
    cached: bool = False,
) -> Costs:
    """What training a model costs on devices that were measured.

    Args:
        spec: the model.
        tuning: the technique.
        work: tokens of a row.
        times: of each device, in rank order (`cluster.training_times.find_training`).
        kept: in what form things are kept.
        cached: with the backbone's activations from the cache.

    Raises:
        UserError: the times lack the phase or a kind of layer.
    """
    form = kept or Kept()
    layers = layer_bytes(spec, tuning, work, form.weight_dtype, form.cache_bytes, cached, form.probabilities)
    phase, kinds = "cached" if cached else "train", layer_kinds(spec)
    seen: set[str] = set()
    numbers = []
    for layer in layers:  # a table that layers share is updated with the first of them
        tables = {name: n for name, n in layer.tables.items() if name in layer.trains_tables and name not in seen}
        seen |= tables.keys()
        numbers.append((layer.trained + sum(tables.values())) // GRADIENT_BYTES)
    by_device = []
    for place, device in enumerate(times):
        known = [_known(device, phase, kind, place) for kind in kinds]
        by_device.append(
            LayerTimes(
                tuple(_cost(layer.forward) for layer in known),
                tuple(_cost(layer.backward) for layer in known),
                tuple(device.update.seconds(number) for number in numbers),
            )
        )
    return Costs(pieces(spec), layers, tuple(by_device), OPTIMIZER_COPIES[form.optimizer])


def _known(device: TrainingTimes, phase: str, kind: str, place: int) -> LayerTime:
    kinds = device.layers.get(phase, {})
    if kind not in kinds:
        raise UserError(
            f"training times of device {place}, {phase}", value=", ".join(kinds) or "none",
            rule=f"there is one for {kind}",
            remedy=f"They are of a model with other layers: run {MEASURE} with this run's other overrides",
        )  # fmt: skip
    return kinds[kind]


def _cost(line: RowTime) -> Cost:
    return Cost(line.fixed_s, line.row_s)
