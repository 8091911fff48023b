"""How many bytes a plan sends, to the byte: asserted against the counters in tests.

Notation: B rows, S tokens, s_d the tokens of device d, w the bytes of one token's row on the wire (`tile_bytes`).
    ring all-gather      device d sends every tile but the next device's: (S - s_(d+1)) w B
    ring reduce-scatter  every tile but its own:                          (S - s_d) w B
Tiles of rows (`Plan.subtiles`) cut messages, not bytes. Source: Galaxy (arXiv 2405.17245), section on hybrid model
parallelism, with unequal tiles.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from edgempi.plan.apportion import apportion, length
from edgempi.plan.flow import carried, chunk_spans, due, ends_encoder, lies, reads_whole_memory
from edgempi.plan.layout import Region, moves
from edgempi.plan.plan import Block, Connective, Plan, Stage, Table
from edgempi.plan.spec import ModelSpec, Stack
from edgempi.plan.workload import Workload

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
SCALE_BYTES = 2
INT8_GROUP = 16
"""How many columns of a row share a scale where they travel as int8. One scale for a whole row errs twice as much on
rows of 1024 columns (0.8 against 0.5 %), and far more where a few columns stand out, as they do in trained models."""
WINNER_BYTES = 8  # a token id or a logit, when winners are exchanged


def tile_bytes(wire_dtype: str, tokens: int, columns: int) -> int:
    """Of a message of `tokens` (times rows) by `columns`; nothing for an empty one."""
    scales = SCALE_BYTES * int8_groups(columns) if wire_dtype == "int8" else 0
    return tokens * (columns * ELEMENT_BYTES[wire_dtype] + scales) if columns else 0


def int8_groups(columns: int) -> int:
    """How many scales a row has: one per `INT8_GROUP` columns, one in all where they do not divide it."""
    return columns // INT8_GROUP if columns % INT8_GROUP == 0 else 1


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
    chunks = chunk_spans(plan, work.tokens)
    one = one_token or spec.head.select != "all"
    for rows in apportion(work.rows, [1.0] * min(plan.microbatches, work.rows)):
        for chunk in chunks:
            part = replace(work, tokens=length(chunk))
            for index, (stage, units) in enumerate(stages):
                for place, device in enumerate(stage.devices):
                    ring = _Ring(plan, spec, stage, place, rows, part)
                    for unit in units:
                        if unit != "head" or not one or chunk == chunks[-1]:
                            sent[device][unit] += ring.unit(unit, cached, one)
                if index + 1 < len(stages):
                    after, after_units = stages[index + 1]
                    for source, _, nbytes in handovers(plan, spec, stage, after, after_units[0], rows, part, cached):
                        sent[source][f"to {after_units[0]}"] += nbytes
    return sent


def handovers(
    plan: Plan, spec: ModelSpec, before: Stage, after: Stage, unit: str, rows: int, work: Workload, cached: bool
) -> list[tuple[int, int, int]]:
    """The messages between two stages: (source, target, bytes), in the order of sending."""
    found = []
    for name in carried(spec, unit, cached):
        stack = "enc" if name == "memory" else name
        shape = (rows, work.of(spec, stack), spec.stacks[stack].width)
        for move in moves(lies(before, name, shape), lies(after, name, shape)):
            B, S, D = move.region.shape
            found.append((move.source, move.target, tile_bytes(plan.wire_dtype, B * S, D)))
    return found


class _Ring:
    """What one device of a stage sends for its units in a pass of `rows` rows; mirrors `parallel/seams.py`."""

    def __init__(self, plan: Plan, spec: ModelSpec, stage: Stage, place: int, rows: int, work: Workload) -> None:
        self._spec, self._stage, self._place, self._work = spec, stage, place, work
        self._size = stage.size
        start, stop = stage.row_spans(rows)[place]
        self._rows = stop - start
        self._dtype = plan.wire_dtype

    def _bytes(self, tokens: int, columns: int) -> int:
        return tile_bytes(self._dtype, self._rows * tokens, columns)

    def unit(self, unit: str, cached: bool, one: bool) -> int:
        """Bytes for one unit."""
        if self._size == 1:
            return 0
        if unit == "head":
            return self._head(one)
        name, _, part = unit.partition(".")
        stack, modes = self._spec.stacks[name], self._stage.modes
        total = 0
        if part == "embed":
            split = modes.embedding == Table.vocabulary
            total = self._bytes(self._leave(name, split), stack.embedding.width)
        elif part != "norm":
            total = self._layer(name, stack, cached)
        if ends_encoder(self._spec, unit) and reads_whole_memory(self._stage):
            total += self._bytes(self._gather(name), stack.width)
        return total

    def _layer(self, name: str, stack: Stack, cached: bool) -> int:
        attention, mlp = (kind == Block.tensor for kind in (self._stage.modes.attention, self._stage.modes.mlp))
        seams = self._both(name, attention) * (2 if stack.cross else 1) + self._both(name, mlp)
        keys = 0
        if not attention:
            keys = self._gather(name)
            if stack.cross and not cached:
                keys += self._gather("enc")
        return self._bytes(seams, stack.width) + self._bytes(2 * keys, stack.kv_heads * stack.head_dim)

    def _head(self, one: bool) -> int:
        head, name = self._spec.head, self._spec.last
        width = self._spec.stacks[name].width
        split = self._stage.modes.head == Table.vocabulary and head.vocabulary
        if one and self._stage.modes.connective == Connective.tokens:
            # The rows stand where tokens do: one token of each is summed up.
            return tile_bytes(self._dtype, self._all_reduce(self._rows), width)
        if split and not one:
            return self._bytes(self._gather(name), head.project_width or width)
        return 0

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
