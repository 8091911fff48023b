"""What a plan costs each device: bytes kept, bytes sent. Formulas over counts, exact where they can be.

Bytes sent follow the rings to the byte and are asserted against the counters in tests; weights are exact too;
activations are an estimate of the largest set of tensors that lives at once.

Notation: B rows, S tokens, s_d the tokens of device d, h width, e bytes per element on the wire.
    ring all-gather      device d sends every tile but the next device's: (S - s_(d+1)) h e B
    ring reduce-scatter  every tile but its own:                          (S - s_d) h e B
Source: Galaxy (arXiv 2405.17245), section on hybrid model parallelism, with unequal tiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgempi.errors import UserError
from edgempi.plan.apportion import apportion, length
from edgempi.plan.flow import carried, due, ends_encoder, lies, reads_whole_memory
from edgempi.plan.layout import Region, moves
from edgempi.plan.plan import Block, Connective, Plan, Stage, Table
from edgempi.plan.share import DeviceShare, device_share, holdings
from edgempi.plan.spec import ModelSpec, Stack, is_layer, stack_of

ITEM_BYTES = {"fp32": 4, "bf16": 2}
WINNER_BYTES = 8  # a token id or a logit, when winners are exchanged
RUNTIME_BYTES = 40 * 2**20
"""What a rank's libraries take beside tensors once they run: kernel code, scratch space, message buffers (measured)."""


@dataclass(frozen=True)
class Workload:
    """The passes to plan for.

    Attributes:
        rows: sequences at once.
        tokens: of the stack that the head reads.
        memory_tokens: of the encoder, where there are two stacks.
        new_tokens: to be written after them; sizes the key-value cache.
    """

    rows: int = 1
    tokens: int = 128
    memory_tokens: int = 0
    new_tokens: int = 0

    def of(self, spec: ModelSpec, stack: str) -> int:
        """Tokens of one stack."""
        return self.tokens if stack == spec.last else self.memory_tokens


@dataclass(frozen=True)
class Memory:
    """The memory of one device above its import baseline, in bytes."""

    weights: int
    cache: int
    activations: int
    loading: int
    """The largest transient of loading: a weight beside the form it is kept in."""

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return self.weights + max(self.cache + self.activations, self.loading) + RUNTIME_BYTES


def predict_memory(plan: Plan, spec: ModelSpec, device: int, work: Workload) -> Memory:
    """The memory that a device needs under a plan."""
    share = device_share(plan, spec, device)
    held = holdings(share, spec).values()
    item = ITEM_BYTES[plan.weight_dtype]
    layers = [unit for unit in share.stage.units if is_layer(unit)]
    rows = length(share.stage.row_spans(work.rows)[share.stage.position(device)])
    cache = 0
    for unit in layers if spec.generates and work.new_tokens else ():
        name = stack_of(unit)
        stack = spec.stacks[name]
        if name == "dec":
            kept = work.tokens + work.new_tokens + (work.memory_tokens if stack.cross else 0)
            cache += 2 * rows * kept * length(share.kv_heads[name]) * stack.head_dim * item
    active = [_activations(spec, share, name, rows, work) for name in {stack_of(unit) for unit in layers}]
    logits = 0
    if "head" in share.stage.units:
        asked = 1 if spec.generates and work.new_tokens else work.tokens
        logits = rows * asked * length(share.head) * (item + 4)
    return Memory(
        weights=sum(holding.elements for holding in held) * item,
        cache=cache,
        activations=max(active, default=0) * item + logits,
        loading=max((holding.elements for holding in held), default=0) * item,
    )


def _activations(spec: ModelSpec, share: DeviceShare, name: str, rows: int, work: Workload) -> int:
    """Elements of the largest set of tensors that one layer of a stack keeps at once."""
    stack, stage, total = spec.stacks[name], share.stage, work.of(spec, name)
    place = stage.position(share.device)
    start, stop = stage.token_spans(total)[place]
    outer = stop - start
    inner = total if stage.modes.attention == Block.tensor else outer
    heads, kv_heads = length(share.heads[name]), length(share.kv_heads[name])
    qkv = (heads + 2 * kv_heads) * stack.head_dim
    repeated = 2 * total * heads * stack.head_dim if stack.group > 1 else 0
    bias = heads * inner * total if stack.relative else 0
    attention = inner * (qkv + 2 * heads * stack.head_dim) + repeated + bias
    columns = length(share.mlp_columns[name]) * (3 if stack.gated else 1)
    inner_mlp = total if stage.modes.mlp == Block.tensor else outer
    memory = work.memory_tokens * stack.width if stack.cross else 0
    return rows * (3 * outer * stack.width + 2 * inner * stack.width + max(attention, inner_mlp * columns) + memory)


def check_budgets(
    plan: Plan, spec: ModelSpec, work: Workload, names: Sequence[str], budgets: Sequence[int | None]
) -> None:
    """Refuse, before anything loads, a plan that gives a device more than it lends.

    Raises:
        UserError: names the device, its need, its budget, and a change that could fit.
    """
    for device, (name, budget) in enumerate(zip(names, budgets, strict=True)):
        need = predict_memory(plan, spec, device, work).peak
        if budget is not None and need > budget:
            raise UserError(
                f"device {name}", value=f"needs {need / 1e6:.0f} MB for its share",
                rule=f"its memory budget is {budget / 1e6:.0f} MB (budget above what its imports take)",
                remedy="Give it a smaller share (planner=proportional planner.speeds=[..]), add devices, "
                "use weights=bf16, or raise its budget",
            )  # fmt: skip


def sent_bytes(
    plan: Plan, spec: ModelSpec, work: Workload, cached: bool = False, one_token: bool = False
) -> list[Counter[str]]:
    """Bytes that each device sends in one pass, by unit.

    Args:
        plan: who does what.
        spec: the model.
        work: how much; its `tokens` is 1 for a decode step.
        cached: a decode step: an encoder has spoken.
        one_token: the head is asked for one token of each row, and winners are exchanged.
    """
    sent: list[Counter[str]] = [Counter() for _ in plan.devices]
    stages = due(plan, spec, cached)
    count = min(plan.microbatches, work.rows)
    for rows in apportion(work.rows, [1.0] * count):
        for index, (stage, units) in enumerate(stages):
            for place, device in enumerate(stage.devices):
                for unit in units:
                    sent[device][unit] += _Ring(plan, spec, stage, place, rows, work).unit(unit, cached, one_token)
            if index + 1 < len(stages):
                after, after_units = stages[index + 1]
                for device, nbytes in _handed(plan, spec, stage, after, after_units[0], rows, work, cached):
                    sent[device][f"to {after_units[0]}"] += nbytes
    return sent


def _handed(
    plan: Plan, spec: ModelSpec, before: Stage, after: Stage, unit: str, rows: int, work: Workload, cached: bool
) -> list[tuple[int, int]]:
    found = []
    for name in carried(spec, unit, cached):
        stack = "enc" if name == "memory" else name
        shape = (rows, work.of(spec, stack), spec.stacks[stack].width)
        for move in moves(lies(before, name, shape), lies(after, name, shape)):
            B, S, D = move.region.shape
            found.append((move.source, B * S * D * ITEM_BYTES[plan.wire_dtype]))
    return found


class _Ring:
    """What one device of a stage sends for its units in a pass of `rows` rows; mirrors `parallel/seams.py`."""

    def __init__(self, plan: Plan, spec: ModelSpec, stage: Stage, place: int, rows: int, work: Workload) -> None:
        self._spec, self._stage, self._place, self._work = spec, stage, place, work
        self._size = stage.size
        start, stop = stage.row_spans(rows)[place]
        self._rows = stop - start
        self._element = ITEM_BYTES[plan.wire_dtype]
        self._item = self._element * self._rows  # one column of a token, of all rows

    def unit(self, unit: str, cached: bool, one_token: bool) -> int:
        """Bytes for one unit."""
        if self._size == 1:
            return 0
        if unit == "head":
            return self._head(one_token)
        name, _, part = unit.partition(".")
        stack, modes = self._spec.stacks[name], self._stage.modes
        total = 0
        if part == "embed":
            split = modes.embedding == Table.vocabulary
            total = self._leave(name, split) * stack.embedding.width * self._item
        elif part != "norm":
            total = self._layer(name, stack, cached)
        if ends_encoder(self._spec, unit) and reads_whole_memory(self._stage):
            total += self._gather(name) * stack.width * self._item
        return total

    def _layer(self, name: str, stack: Stack, cached: bool) -> int:
        attention, mlp = (kind == Block.tensor for kind in (self._stage.modes.attention, self._stage.modes.mlp))
        seams = self._both(name, attention) * (2 if stack.cross else 1) + self._both(name, mlp)
        keys = 0
        if not attention:
            keys = self._gather(name)
            if stack.cross and not cached:
                keys += self._gather("enc")
        return (seams * stack.width + keys * 2 * stack.kv_heads * stack.head_dim) * self._item

    def _head(self, one_token: bool) -> int:
        head, name = self._spec.head, self._spec.last
        width = self._spec.stacks[name].width
        tokens = self._stage.modes.connective == Connective.tokens
        split = self._stage.modes.head == Table.vocabulary and head.vocabulary
        one = one_token or head.select != "all"
        total = 0
        if one and tokens:
            total += self._all_reduce(self._rows) * width * self._element
        elif split and not one:
            total += self._gather(name) * (head.project_width or width) * self._item
        return total

    def _counts(self, name: str) -> list[int]:
        return [stop - start for start, stop in self._stage.token_spans(self._work.of(self._spec, name))]

    def _gather(self, name: str) -> int:
        """Tokens sent by an all-gather of the stream's shards; none where it is not sharded."""
        if self._stage.modes.connective != Connective.tokens:
            return 0
        counts = self._counts(name)
        return sum(counts) - counts[(self._place + 1) % self._size]

    def _leave(self, name: str, split: bool) -> int:
        """Tokens sent by handing the sums out."""
        if not split:
            return 0
        if self._stage.modes.connective == Connective.replicated:
            return self._all_reduce(self._work.of(self._spec, name))
        counts = self._counts(name)
        return sum(counts) - counts[self._place]

    def _both(self, name: str, split: bool) -> int:
        return (self._gather(name) if split else 0) + self._leave(name, split)

    def _all_reduce(self, tokens: int) -> int:
        counts = apportion(tokens, [1.0] * self._size)
        return 2 * tokens - counts[self._place] - counts[(self._place + 1) % self._size]


def token_bytes(plan: Plan, spec: ModelSpec, rows: int) -> list[int]:
    """Bytes that each device sends so that all know the next token: winners in the head's stage, then the token."""
    stage = next(stage for stage in plan.stages if "head" in stage.units)
    sent = [0] * len(plan.devices)
    split = stage.modes.head == Table.vocabulary and spec.head.vocabulary
    for count in apportion(rows, [1.0] * min(plan.microbatches, rows)):
        holders = dict(zip(reversed(stage.row_spans(count)), reversed(stage.devices), strict=True))
        one = {device: Region(span, (0, 1), (0, 1)) for span, device in holders.items()}
        everyone = {device: Region((0, count), (0, 1), (0, 1)) for device in plan.devices}
        if split and stage.size > 1:
            for device in stage.devices:
                sent[device] += (stage.size - 1) * count * 2 * WINNER_BYTES
        for move in moves(one, everyone):
            if move.source != move.target:
                sent[move.source] += move.region.shape[0] * WINNER_BYTES
    return sent
