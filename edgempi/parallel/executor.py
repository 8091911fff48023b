"""Run a plan: this rank's units in order, bytes in from the stage before, bytes out to the stage after.

One loop serves every way of sharing: a stage of one device, a group that shares by heads, tokens or rows, and any
pipeline of these. Which messages pass between two stages follows from their layouts alone (`plan/layout.py`).

Shapes: B rows of the whole batch, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.comm import Group, World
from edgempi.comm.world import Pending
from edgempi.models.block import Block
from edgempi.models.ends import Embed, Head, selected
from edgempi.models.kv_cache import KVCache
from edgempi.models.stream import Memory, Stream
from edgempi.models.weights import TORCH_DTYPES
from edgempi.ops.norm import Norm
from edgempi.parallel.batch import Batch
from edgempi.parallel.outputs import Output, lay_out
from edgempi.parallel.seams import Whole, seam
from edgempi.plan.apportion import Span, apportion, spans
from edgempi.plan.flow import carried, due, ends_encoder, lies, reads_whole_memory
from edgempi.plan.plan import Block as BlockMode
from edgempi.plan.plan import Plan, Stage, Table
from edgempi.plan.spec import ModelSpec

Observer = Callable[[str, Tensor], None]
"""Called with every unit's name and this device's part of the stream after it."""


@dataclass(frozen=True)
class Executor:
    """Runs one plan on this rank.

    Args:
        world: all ranks.
        group: the ranks of this rank's stage.
        plan: who does what.
        spec: the model.
        units: this rank's units, loaded (`inference/runner.py`).
        relative: the own heads' columns of the relative bias tables, by stack.
    """

    world: World
    group: Group
    plan: Plan
    spec: ModelSpec
    units: Mapping[str, Block | Embed | Norm | Head]
    relative: Mapping[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """What weights are kept and products computed in."""
        return TORCH_DTYPES[self.plan.weight_dtype]

    @property
    def wire(self) -> torch.dtype:
        """What activations travel in."""
        return TORCH_DTYPES[self.plan.wire_dtype]

    def microbatches(self, rows: int) -> tuple[Span, ...]:
        """The groups of rows that pass one after another, so that stages work at the same time."""
        count = min(self.plan.microbatches, rows)
        return spans(apportion(rows, [1.0] * count))

    def forward(
        self,
        batch: Batch,
        caches: Sequence[KVCache] | None = None,
        index_B: Tensor | None = None,
        observe: Observer | None = None,
    ) -> list[dict[str, Output]]:
        """One pass of all units over the batch.

        Collective: every rank, same arguments.

        Args:
            batch: ids and masks; with caches that hold tokens, the new decoder ids only.
            caches: one per microbatch, filled on the way; None: nothing is kept.
            index_B: the token of each row that the head is asked for; None: what the head reads by itself.
            observe: see `Observer`.

        Returns:
            The outputs of each microbatch by name, where they lie.
        """
        sends: list[Pending] = []
        results = []
        for i, rows in enumerate(self.microbatches(batch.rows)):
            index = None if index_B is None else index_B[slice(*rows)]
            one = _Pass(self, batch.cut(rows), None if caches is None else caches[i], index, observe)
            results.append(one.run(rows, sends))
        for send in sends:
            send.wait()
        return results


class _Pass:
    """One microbatch on its way through the stages."""

    def __init__(
        self, executor: Executor, batch: Batch, cache: KVCache | None, index: Tensor | None, observe: Observer | None
    ) -> None:
        self._executor, self._batch, self._cache, self._observe = executor, batch, cache, observe
        self._spec, self._world = executor.spec, executor.world
        self._offset = 0 if cache is None else cache.length
        last = self._spec.last
        if index is None and self._spec.head.select != "all":
            index = selected(self._spec.head.select, batch.ids(last), self._spec.pad_token)
        self._index = index
        self._state: dict[str, Tensor] = {}
        self._streams: dict[str, Stream] = {}

    def run(self, rows: Span, sends: list[Pending]) -> dict[str, Output]:
        """Take part in every stage that this rank belongs to, and hand on what the next one needs."""
        stages = due(self._executor.plan, self._spec, bool(self._offset))
        outputs: dict[str, Tensor] = {}
        for position, (stage, units) in enumerate(stages):
            if self._world.rank not in stage.devices:
                continue
            if position:
                self._hand_over(stages[position - 1][0], stage, units[0], sends)
            outputs = self._run_units(stage, units)
            if position + 1 < len(stages):
                after, after_units = stages[position + 1]
                self._hand_over(stage, after, after_units[0], sends)
        if self._cache is not None:
            self._cache.length += self._batch.ids(self._spec.last).shape[1]
        tokens = self._batch.ids(self._spec.last).shape[1]
        return lay_out(outputs, self._spec, stages[-1][0], rows, tokens, self._index is not None)

    def _run_units(self, stage: Stage, units: Sequence[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for unit in units:
            stack = self._spec.last if unit == "head" else unit.partition(".")[0]
            with self._world.traffic.within(unit):
                run = self._executor.units[unit]
                if isinstance(run, Head):
                    split = stage.modes.head == Table.vocabulary and self._spec.head.vocabulary
                    index = None if self._index is None else self._index[slice(*self._rows(stage))]
                    outputs = run(self._state[stack], self._seam(stage, stack, split), index)
                    continue
                if isinstance(run, Embed):
                    self._state[stack] = run(self._stream(stage, stack))
                elif isinstance(run, Block):
                    # An encoder sees its tokens once; only a decoder has a past.
                    cache = self._cache.layer(unit) if self._cache is not None and stack == "dec" else None
                    self._state[stack] = run(self._state[stack], self._stream(stage, stack), cache)
                else:
                    self._state[stack] = run(self._state[stack])
                if self._observe is not None:
                    self._observe(unit, self._state[stack])
                if ends_encoder(self._spec, unit):
                    self._state["memory"] = self._publish(stage)
        return outputs

    def _publish(self, stage: Stage) -> Tensor:
        """The encoder's output as this stage's decoder layers read it: whole where they are split by heads."""
        x = self._state.pop("enc")
        return self._seam(stage, "enc", False).gather(x) if reads_whole_memory(stage) else x

    def _stream(self, stage: Stage, stack: str) -> Stream:
        if stack not in self._streams:
            rows = slice(*self._rows(stage))
            batch = self._batch
            padding, encoder_padding = batch.padding(stack), batch.enc_padding
            modes = stage.modes
            memory = self._state.get("memory") if stack == "dec" else None
            encoder_padding = None if encoder_padding is None else encoder_padding[rows]
            self._streams[stack] = Stream(
                stack=self._spec.stacks[stack],
                ids=batch.ids(stack)[rows],
                offset=self._offset,
                padding=None if padding is None else padding[rows],
                types=None if batch.types is None else batch.types[rows],
                dtype=self._executor.dtype,
                embedding_seam=self._seam(stage, stack, modes.embedding == Table.vocabulary),
                attention_seam=self._seam(stage, stack, modes.attention == BlockMode.tensor),
                mlp_seam=self._seam(stage, stack, modes.mlp == BlockMode.tensor),
                relative_table=self._executor.relative.get(stack),
                memory=None if memory is None else Memory(memory, self._memory_seam(stage), encoder_padding),
                memory_padding=encoder_padding,
            )
        return self._streams[stack]

    def _memory_seam(self, stage: Stage) -> Whole:
        return self._seam(stage, "enc", stage.modes.attention == BlockMode.tensor)

    def _seam(self, stage: Stage, stack: str, split: bool) -> Whole:
        return seam(stage, self._executor.group, self._batch.ids(stack).shape[1], self._executor.wire, split)

    def _rows(self, stage: Stage) -> Span:
        return stage.row_spans(self._batch.rows)[stage.position(self._world.rank)]

    def _hand_over(self, before: Stage, after: Stage, unit: str, sends: list[Pending]) -> None:
        """Send from `before` to `after` what the unit that comes next needs; this rank is on one side."""
        for name in carried(self._spec, unit, bool(self._offset)):
            stack = "enc" if name == "memory" else name
            shape = (self._batch.rows, self._batch.ids(stack).shape[1], self._spec.stacks[stack].width)
            source, target = lies(before, name, shape), lies(after, name, shape)
            with self._world.traffic.within(f"to {unit}"):
                own = self._state.get(name) if self._world.rank in before.devices else None
                got, pending = self._world.transfer(own, source, target, self._executor.wire)
            sends.append(pending)
            if got is not None:
                self._state[name] = got.to(self._executor.dtype)
