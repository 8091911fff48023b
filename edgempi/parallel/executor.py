"""Run a plan: this rank's units in order, bytes in from the stage before, bytes out to the stage after.

One loop serves every way of sharing: a stage of one device, a group that shares by heads, tokens or rows, and any
pipeline of these. Which messages pass between two stages follows from their layouts alone (`plan/layout.py`).

Shapes: B rows of the whole batch, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.comm import Group, World
from edgempi.comm.trace import COMPUTE
from edgempi.comm.transfer import Mail, Transfer
from edgempi.comm.wire import Wire, wire_named
from edgempi.models.block import Block
from edgempi.models.ends import Embed, Head, selected
from edgempi.models.kv_cache import KVCache
from edgempi.models.parts import Parts
from edgempi.models.stream import Memory, Stream
from edgempi.models.weights import TORCH_DTYPES
from edgempi.ops.norm import Norm
from edgempi.parallel.batch import Batch
from edgempi.parallel.chunks import Picked
from edgempi.parallel.outputs import Output, lay_out
from edgempi.parallel.seam import seam
from edgempi.parallel.seams import Whole
from edgempi.plan.apportion import Span, apportion, spans
from edgempi.plan.flow import Shape, carried, chunk_spans, due, ends_encoder, lies, reads_whole_memory
from edgempi.plan.plan import Block as BlockMode
from edgempi.plan.plan import Plan, Stage, Table
from edgempi.plan.spec import ModelSpec

Observer = Callable[[str, Tensor], None]
"""Called with every unit's name and this device's part of the stream (of a chunk of it) after it."""


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
    def wire(self) -> Wire:
        """What activations travel in."""
        return wire_named(self.plan.wire_dtype)

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
            The outputs by name, where they lie: of each microbatch, and where its tokens pass in chunks, of each chunk
            in order. Where the head is asked for one token of each row, there is one for each microbatch all the same.
        """
        mail = Mail()
        passes = self._passes(batch, caches, index_B, observe)
        found = []
        now = next(passes, None)
        if now is not None:
            now.expect(mail)
        while now is not None:
            after = next(passes, None)
            if after is not None:  # its messages can come in while this one computes
                after.expect(mail)
            found.append(now.run(mail))
            now = after
        mail.drain()
        self.group.drain()
        return [outputs for outputs in found if outputs]

    def _passes(
        self, batch: Batch, caches: Sequence[KVCache] | None, index_B: Tensor | None, observe: Observer | None
    ) -> Iterator[_Pass]:
        """The passes in order, each made when the one before it is about to run."""
        head, last = self.spec.head, self.spec.last
        for i, rows in enumerate(self.microbatches(batch.rows)):
            part = batch.cut(rows)
            chunks = chunk_spans(self.plan, part.ids(last).shape[1])
            cache = None if caches is None else caches[i]
            if cache is None and len(chunks) > 1:
                cache = KVCache(chunks[-1][1])
            # A head of hidden states gives all tokens, whatever is asked.
            index = None if index_B is None or not (head.rows or head.dense) else index_B[slice(*rows)]
            if index is None and head.select != "all":
                index = selected(head.select, part.ids(last), self.spec.pad_token)
            shared = _Microbatch(rows, part, chunks, cache, 0 if cache is None else cache.length, index)
            for chunk in chunks:
                yield _Pass(self, shared, chunk, observe)


@dataclass
class _Microbatch:
    """What the passes of one microbatch share: one pass, or one for each chunk of its tokens."""

    rows: Span
    batch: Batch
    chunks: tuple[Span, ...]
    cache: KVCache | None
    seen: int
    """Tokens in the cache before the first chunk."""
    index: Tensor | None
    picked: Picked | None = None


class _Pass:
    """One microbatch, or one chunk of its tokens, on its way through the stages."""

    def __init__(self, executor: Executor, shared: _Microbatch, chunk: Span, observe: Observer | None) -> None:
        self._executor, self._shared, self._chunk, self._observe = executor, shared, chunk, observe
        self._spec, self._world = executor.spec, executor.world
        self._cache, self._index, self._offset = shared.cache, shared.index, shared.seen + chunk[0]
        self._chunked = len(shared.chunks) > 1
        self._batch = shared.batch.chunk(chunk, shared.seen) if self._chunked else shared.batch
        self._stages = due(executor.plan, self._spec, bool(self._offset))
        mine = (i for i, (stage, _) in enumerate(self._stages) if self._world.rank in stage.devices)
        self._position = next(mine, None)
        self._expected: dict[str, Transfer] = {}
        self._state: dict[str, Parts] = {}
        self._streams: dict[str, Stream] = {}

    def expect(self, mail: Mail) -> None:
        """Be ready for what the stage before will hand over."""
        if not self._position:
            return
        (before, _), (stage, units) = self._stages[self._position - 1 : self._position + 1]
        for name, shape in self._carried(units[0]):
            self._expected[name] = self._begin(name, shape, before, stage, units[0])
            mail.add(self._expected[name].receives)

    def run(self, mail: Mail) -> dict[str, Output]:
        """Take part in this rank's stage, and hand on what the next one needs.

        Returns:
            The outputs; nothing where a later chunk will bring them.
        """
        outputs: dict[str, Tensor] = {}
        if self._position is not None:
            stage, units = self._stages[self._position]
            for name, transfer in self._expected.items():
                got = transfer.receive()
                if got is not None:
                    self._state[name] = Parts.of(got.to(self._executor.dtype))
            outputs = self._run_units(stage, units, mail)
            for after, after_units in self._stages[self._position + 1 :][:1]:
                for name, shape in self._carried(after_units[0]):
                    transfer = self._begin(name, shape, stage, after, after_units[0])
                    lying = self._state.get(name)
                    mail.add(transfer.send(None if lying is None else lying.whole()))
        tokens = self._batch.ids(self._spec.last).shape[1]
        if self._cache is not None:
            self._cache.length += tokens
        if self._chunked and self._index is not None and self._chunk != self._shared.chunks[-1]:
            return {}
        last = self._stages[-1][0]
        return lay_out(outputs, self._spec, last, self._shared.rows, tokens, self._index is not None)

    def _run_units(self, stage: Stage, units: Sequence[str], mail: Mail) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        traffic = self._world.traffic
        for unit in units:
            stack = self._spec.last if unit == "head" else unit.partition(".")[0]
            with traffic.within(unit), traffic.trace.span(COMPUTE, unit):
                mail.poll()
                run = self._executor.units[unit]
                if isinstance(run, Head):
                    outputs = self._read_out(run, stage, stack)
                    continue
                if isinstance(run, Embed):
                    self._state[stack] = Parts.of(run(self._stream(stage, stack)))
                elif isinstance(run, Block):
                    # An encoder sees its tokens once; only a decoder has a past.
                    cache = self._cache.layer(unit) if self._cache is not None and stack == "dec" else None
                    self._state[stack] = run(self._state[stack], self._stream(stage, stack), cache)
                else:
                    self._state[stack] = self._state[stack].map(run)
                if self._observe is not None:
                    self._observe(unit, self._state[stack].whole())
                if ends_encoder(self._spec, unit):
                    self._state["memory"] = Parts.of(self._publish(stage))
        return outputs

    def _read_out(self, head: Head, stage: Stage, stack: str) -> dict[str, Tensor]:
        x = self._state[stack].whole()
        split = stage.modes.head == Table.vocabulary and self._spec.head.vocabulary
        seam = self._seam(stage, stack, split)
        index = None if self._index is None else self._index[slice(*self._rows(stage))]
        if index is None or not self._chunked:
            return head(x, seam, index)
        # The rows' tokens may lie in several chunks; the head reads them together, with the last.
        picked = self._shared.picked = self._shared.picked or Picked(index)
        picked.take(x, seam, self._chunk)
        if self._chunk != self._shared.chunks[-1]:
            return {}
        return head(picked.whole(x), Whole(1), None)

    def _publish(self, stage: Stage) -> Tensor:
        """The encoder's output as this stage's decoder layers read it: whole where they are split by heads."""
        x = self._state.pop("enc").whole()
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
                memory=None if memory is None else Memory(memory.whole(), self._memory_seam(stage), encoder_padding),
                memory_padding=encoder_padding,
            )
        return self._streams[stack]

    def _memory_seam(self, stage: Stage) -> Whole:
        return self._seam(stage, "enc", stage.modes.attention == BlockMode.tensor)

    def _seam(self, stage: Stage, stack: str, split: bool) -> Whole:
        return seam(self._executor.plan, stage, self._executor.group, self._batch.ids(stack).shape[1], split)

    def _rows(self, stage: Stage) -> Span:
        return stage.row_spans(self._batch.rows)[stage.position(self._world.rank)]

    def _carried(self, unit: str) -> list[tuple[str, Shape]]:
        """What the stage that begins with `unit` needs from the one before, with its shape."""
        found = []
        for name in carried(self._spec, unit, bool(self._offset)):
            stack = "enc" if name == "memory" else name
            tokens = self._batch.ids(stack).shape[1]
            found.append((name, (self._batch.rows, tokens, self._spec.stacks[stack].width)))
        return found

    def _begin(self, name: str, shape: Shape, before: Stage, after: Stage, unit: str) -> Transfer:
        with self._world.traffic.within(f"to {unit}"):
            source, target = lies(before, name, shape), lies(after, name, shape)
            return self._world.begin_transfer(source, target, self._executor.wire)
