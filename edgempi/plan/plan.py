"""The Plan: who owns what. Immutable, and the only place that says so.

A Program is a set of named phases, each with its Plan; a Plan is stages in order; a Stage is a contiguous run of units
(`enc.embed, enc.0 .. enc.n, enc.norm, dec.embed, dec.0 .. dec.n, dec.norm, head`), the devices that share it, a mode
per kind of block, and each device's share. The names people use for ways of sharing are presets of the modes:

    single    one device                                           connective replicated, all blocks local
    data      rows of the batch (EDDL)                             connective rows,       all blocks local
    tensor    heads and MLP columns (Megatron-LM)                  connective replicated, blocks tensor
    sequence  tokens, K and V gathered (SP)                        connective tokens,     attention sequence, MLP local
    hybrid    heads and columns, connective blocks by tokens       connective tokens,     blocks tensor

Source: Galaxy (arXiv 2405.17245), hybrid model parallelism; PAC: several `data` stages, then one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from edgempi.plan.apportion import Span, apportion, spans
from edgempi.plan.layout import Layout, Region


class Connective(StrEnum):
    """How the residual stream lies on a stage's devices between the blocks, where norms and residual adds work."""

    replicated = "replicated"
    tokens = "tokens"
    rows = "rows"


class Block(StrEnum):
    """How attention or MLP is shared: whole on the rows at hand, by heads or columns, or by tokens (attention only)."""

    local = "local"
    tensor = "tensor"
    sequence = "sequence"


class Table(StrEnum):
    """How the embedding table or the head is shared: whole on each device, or split over the vocabulary."""

    whole = "whole"
    vocabulary = "vocabulary"


@dataclass(frozen=True)
class Modes:
    """A mode per kind of block."""

    connective: Connective
    attention: Block
    mlp: Block
    embedding: Table
    head: Table

    @property
    def name(self) -> str:
        """The preset's name, or the modes spelt out where they are nobody's preset."""
        named = (name for name, modes in PRESETS.items() if modes == self)
        return next(named, f"{self.connective}/{self.attention}/{self.mlp}")


PRESETS: Mapping[str, Modes] = {
    "single": Modes(Connective.replicated, Block.local, Block.local, Table.whole, Table.whole),
    "data": Modes(Connective.rows, Block.local, Block.local, Table.whole, Table.whole),
    "tensor": Modes(Connective.replicated, Block.tensor, Block.tensor, Table.vocabulary, Table.vocabulary),
    "sequence": Modes(Connective.tokens, Block.sequence, Block.local, Table.whole, Table.whole),
    "hybrid": Modes(Connective.tokens, Block.tensor, Block.tensor, Table.vocabulary, Table.vocabulary),
    # Attention by heads, the MLP whole on the own tokens: half of hybrid's bytes, all MLP weights on each device.
    "heads": Modes(Connective.tokens, Block.tensor, Block.local, Table.vocabulary, Table.vocabulary),
}


@dataclass(frozen=True)
class Stage:
    """A contiguous run of units, the devices that share it, how, and how much each.

    Every vector has one entry per device of `devices`, in that order. Counts are whole numbers and may be zero; token
    and row shares are weights, since lengths differ from call to call. Vectors that the modes do not use are empty.
    """

    units: tuple[str, ...]
    devices: tuple[int, ...]
    modes: Modes
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per stack (`enc`, `dec`): query heads of each device."""
    mlp_columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Per stack: intermediate MLP columns of each device."""
    vocabulary: tuple[int, ...] = ()
    """Rows of the embedding table and of the head of each device."""
    tokens: tuple[float, ...] = ()
    rows: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """How many devices share the stage."""
        return len(self.devices)

    def position(self, device: int) -> int:
        """The place of a world rank within this stage."""
        return self.devices.index(device)

    def row_spans(self, rows: int) -> tuple[Span, ...]:
        """Which batch rows of `rows` each device works on."""
        if self.modes.connective == Connective.rows:
            return spans(apportion(rows, self.rows))
        return ((0, rows),) * self.size

    def token_spans(self, tokens: int) -> tuple[Span, ...]:
        """Which of `tokens` tokens each device keeps between the blocks."""
        if self.modes.connective == Connective.tokens:
            return spans(apportion(tokens, self.tokens))
        return ((0, tokens),) * self.size

    def layout(self, rows: int, tokens: int, columns: int, first_row: int = 0) -> Layout:
        """Where the residual stream of a (rows, tokens, columns) pass lies; `first_row` shifts a microbatch."""
        boxes = zip(self.devices, self.row_spans(rows), self.token_spans(tokens), strict=True)
        return {
            device: Region((a + first_row, b + first_row), token_span, (0, columns))
            for device, (a, b), token_span in boxes
        }


@dataclass(frozen=True)
class Plan:
    """Stages in order, and the forms in which weights are kept and activations travel."""

    stages: tuple[Stage, ...]
    weight_dtype: str = "fp32"
    wire_dtype: str = "fp32"
    microbatches: int = 1
    column_blocks: int = 1
    """Into how many column blocks each linear's weight is cut, so that communication can be driven between them."""
    overlap: str = "blocking"
    """How communication is hidden under products: `blocking` (not at all), `ring`, `icollective`, or `auto`."""
    subtiles: int = 1
    """Into how many tiles of rows each device's tokens are cut where communication is overlapped."""
    token_chunks: tuple[float, ...] = ()
    """Weights of the chunks of one prompt that stream through causal pipeline stages; empty: the prompt is one."""
    version: int = 1

    @property
    def devices(self) -> tuple[int, ...]:
        """Every device that owns a share, in rank order."""
        return tuple(sorted(device for stage in self.stages for device in stage.devices))

    @property
    def working(self) -> tuple[int, ...]:
        """The devices that have units to run, in rank order."""
        return tuple(sorted(device for stage in self.stages if stage.units for device in stage.devices))

    def stage_of(self, device: int) -> Stage:
        """The stage that a world rank works in."""
        return next(stage for stage in self.stages if device in stage.devices)

    @property
    def name(self) -> str:
        """The way of sharing in a word or two, as tables show it."""
        names = [stage.modes.name for stage in self.stages if stage.units]
        if len(names) == 1:
            return names[0]
        if set(names) == {"single"}:
            return f"pipeline of {len(names)}"
        return "pipeline of " + " | ".join(names)


@dataclass(frozen=True)
class Program:
    """Named phases, each with its Plan (`prefill` and `decode`; an encoder has the first only)."""

    phases: Mapping[str, Plan]

    @property
    def prefill(self) -> Plan:
        """The plan of a whole-sequence forward pass."""
        return self.phases["prefill"]

    @property
    def decode(self) -> Plan:
        """The plan of a one-token step; the prefill plan where none of its own was made."""
        return self.phases.get("decode", self.prefill)


def with_modes(plan: Plan, old: str, new: str) -> Plan:
    """The plan with every `old` stage in mode `new`, shares unchanged; both must own weights alike (hybrid, tensor)."""
    stages = (replace(s, modes=PRESETS[new]) if s.modes == PRESETS[old] else s for s in plan.stages)
    return replace(plan, stages=tuple(stages))
