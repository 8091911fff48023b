"""How much memory a plan takes on each device: weights exactly, activations as the largest set of tensors at once.

Asserted against measured peaks in tests. Notation: B rows, S tokens, h width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgempi.errors import UserError
from edgempi.plan.apportion import apportion, length
from edgempi.plan.flow import chunk_spans
from edgempi.plan.plan import Block, Connective, Plan
from edgempi.plan.share import Axis, DeviceShare, device_share, holdings, inventory, layer_counts, with_first_layers
from edgempi.plan.spec import ModelSpec, is_layer, stack_of
from edgempi.plan.tiles import cut
from edgempi.plan.workload import Workload

FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "up"}
"""Which weights of a layer are one linear."""
ITEM_BYTES = {"fp32": 4, "bf16": 2}
RUNTIME_BYTES = 40 * 2**20
"""What a rank's libraries take beside tensors once they run: kernel code, scratch space, message buffers (measured)."""


@dataclass(frozen=True)
class Memory:
    """The memory of one device above its import baseline, in bytes."""

    weights: int
    cache: int
    activations: int
    loading: int
    """By how much loading exceeds the weights for a moment: one beside the form it is kept in."""
    runtime: int = RUNTIME_BYTES
    """See `RUNTIME_BYTES`; nothing on a device that stays idle."""

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return self.weights + max(self.cache + self.activations, self.loading) + self.runtime


def predict_memory(plan: Plan, spec: ModelSpec, device: int, work: Workload) -> Memory:
    """The memory that a device needs under a plan."""
    share = device_share(plan, spec, device)
    stage = share.stage
    if not stage.units:
        return Memory(0, 0, 0, 0, 0)
    item = ITEM_BYTES[plan.weight_dtype]
    weights, loading = _weights(share, spec)
    layers = layer_counts(stage.units)
    place = stage.position(device)
    rows = length(stage.row_spans(work.rows)[place])
    cache = 0
    chunked = len(chunk_spans(plan, work.tokens)) > 1
    if (work.writes(spec) or chunked) and "dec" in layers:
        stack = spec.stacks["dec"]
        kept = work.tokens + work.new_tokens + (work.memory_tokens if stack.cross else 0)
        cache = layers["dec"] * 2 * rows * kept * length(share.kv_heads["dec"]) * stack.head_dim * item
    group = max(apportion(work.rows, [1.0] * min(plan.microbatches, work.rows)))
    passing = length(stage.row_spans(group)[place])
    active = [_activations(plan, spec, share, name, passing, work) for name in layers]
    logits = 0
    if "head" in stage.units:
        asked = 1 if work.writes(spec) or spec.head.select != "all" else work.tokens
        logits = rows * asked * length(share.head) * (item + 4)
    return Memory(weights * item, cache, max(active, default=0) * item + logits, loading * item)


def _weights(share: DeviceShare, spec: ModelSpec) -> tuple[int, int]:
    """Elements that a device keeps, and by how many more loading exceeds them for a moment.

    Weights are loaded unit by unit; a linear layer (Q, K and V are one) is there twice while it is packed. A stack's
    layers are alike: one is listed, and stands for all.
    """
    layers = layer_counts(share.stage.units)
    listed = replace(share, stage=with_first_layers(share.stage))
    total, highest = 0, 0
    held = holdings(listed, spec)
    for unit in listed.stage.units:
        linears: Counter[str] = Counter()
        for parameter in inventory(spec, unit):
            if parameter.name in held:  # a tied weight is loaded where it is met first
                elements = held.pop(parameter.name).elements
                linears[_linear_of(parameter.name)] += elements
                total += elements * _copies(layers, unit, parameter.name)
        highest = max(highest, total + max(linears.values(), default=0))
    return total, max(0, highest - total)


def weight_bytes_by_block(plan: Plan, spec: ModelSpec, device: int) -> dict[str, int]:
    """The bytes of weights that a device keeps, by the kind of block that reads them; norms are the connective's."""
    share = device_share(plan, spec, device)
    layers = layer_counts(share.stage.units)
    listed = replace(share, stage=with_first_layers(share.stage))
    held = holdings(listed, spec)
    found: Counter[str] = Counter()
    for unit in listed.stage.units:
        for parameter in inventory(spec, unit):
            if parameter.name in held:
                elements = held.pop(parameter.name).elements * _copies(layers, unit, parameter.name)
                found[_block_of(unit, parameter.name)] += elements * ITEM_BYTES[plan.weight_dtype]
    return {block: nbytes for block, nbytes in found.items() if nbytes}


def _copies(layers: Mapping[str, int], unit: str, name: str) -> int:
    """How many weights the one that is listed stands for; a table that all layers share is named by none of them."""
    return layers[stack_of(unit)] if is_layer(unit) and name.startswith(f"{unit}.") else 1


def _block_of(unit: str, name: str) -> str:
    if unit == "head" or unit.endswith(".embed"):
        return "head" if unit == "head" else "embedding"
    if ".norm." in name or unit.endswith(".norm"):
        return "connective"
    return "mlp" if ".mlp." in name else "attention"


def _linear_of(name: str) -> str:
    """One name for the weights that are loaded as one linear layer."""
    stem, _, last = name.rpartition(".")
    block, _, part = stem.rpartition(".")
    return f"{block}.{FUSED.get(part, part)}.{last}"


def _activations(plan: Plan, spec: ModelSpec, share: DeviceShare, name: str, rows: int, work: Workload) -> int:
    """Elements of the largest set of tensors that one layer of a stack keeps at once."""
    stack, stage, total = spec.stacks[name], share.stage, work.of(spec, name)
    chunks = chunk_spans(plan, total) if name == spec.last else ((0, total),)
    passing = max(length(chunk) for chunk in chunks)
    place = stage.position(share.device)
    outer = length(stage.token_spans(passing)[place])
    inner = passing if stage.modes.attention == Block.tensor else outer
    heads, kv_heads = length(share.heads[name]), length(share.kv_heads[name])
    qkv = (heads + 2 * kv_heads) * stack.head_dim
    gathered = 2 * total * kv_heads * stack.head_dim if stage.modes.attention == Block.sequence else 0
    repeated = 2 * total * heads * stack.head_dim if stack.group > 1 else 0
    bias = heads * inner * total if stack.relative else 0
    attention = inner * (qkv + 2 * heads * stack.head_dim) + gathered + repeated + bias
    columns = length(share.mlp_columns[name]) * (3 if stack.gated else 1)
    inner_mlp = passing if stage.modes.mlp == Block.tensor else outer
    if stage.modes.mlp == Block.tensor and stage.modes.connective == Connective.tokens and plan.overlap != "blocking":
        # The MLP runs tile by tile: the hidden activation of the own tokens stays, beside that of the tile at hand.
        tiles = cut([length(span) for span in stage.token_spans(passing)], plan.subtiles)
        inner_mlp = outer + max((tile.tokens for own in tiles for tile in own), default=0)
    memory = work.memory_tokens * stack.width if stack.cross else 0
    return rows * (3 * outer * stack.width + 2 * inner * stack.width + max(attention, inner_mlp * columns) + memory)


def unit_bytes(spec: ModelSpec, weight_dtype: str) -> dict[str, float]:
    """What one more unit of a share weighs: `STACK heads` (of all layers), `STACK columns` and `vocabulary`."""
    item, found = ITEM_BYTES[weight_dtype], {}
    for name, stack in spec.stacks.items():
        split = Counter(dict.fromkeys(Axis, 0))
        for parameter in inventory(spec, f"{name}.0"):
            split[parameter.axis] += prod(parameter.shape) * stack.layers * item
        found[f"{name} heads"] = (split[Axis.heads] + split[Axis.kv_heads]) / stack.heads
        found[f"{name} columns"] = split[Axis.mlp_columns] / stack.mlp_columns
    ends = [unit for unit in spec.units if not is_layer(unit)]
    tables = {p.name: prod(p.shape) for unit in ends for p in inventory(spec, unit) if p.axis == Axis.vocabulary}
    found["vocabulary"] = sum(tables.values()) * item / spec.stacks[spec.last].embedding.vocabulary
    return found


def shortage(plan: Plan, spec: ModelSpec, work: Workload, budgets: Sequence[int | None]) -> list[int]:
    """How many bytes more each device would have to lend; zero or less where it lends enough."""
    needs = (predict_memory(plan, spec, device, work).peak for device in range(len(budgets)))
    return [0 if budget is None else need - budget for need, budget in zip(needs, budgets, strict=True)]


def check_budgets(
    plan: Plan, spec: ModelSpec, work: Workload, names: Sequence[str], budgets: Sequence[int | None]
) -> None:
    """Refuse, before anything loads, a plan that gives a device more than it lends.

    Raises:
        UserError: names the device, its need, its budget, what is missing, and a change that would fit.
    """
    missing = shortage(plan, spec, work, budgets)
    over = next((device for device, lacks in enumerate(missing) if lacks > 0), None)
    if over is None:
        return
    remedies = [f"raise its budget by {missing[over] / 1e6:.0f} MB", "give it a smaller share or add devices "
                "(planner=auto says what fits)"]  # fmt: skip
    if plan.weight_dtype != "bf16" and max(shortage(replace(plan, weight_dtype="bf16"), spec, work, budgets)) <= 0:
        remedies.insert(0, "set weights=bf16 (it fits then)")
    said = ", ".join(remedies)
    budget = budgets[over] or 0
    raise UserError(
        f"device {names[over]}", value=f"needs {(budget + missing[over]) / 1e6:.0f} MB for its share",
        rule=f"its memory budget is {budget / 1e6:.0f} MB (above what its imports take), {missing[over] / 1e6:.0f} MB "
        "are missing", remedy=said[0].upper() + said[1:],
    )  # fmt: skip
