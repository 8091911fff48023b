"""What all layers of a stack share in one pass: ids, positions, masks, seams, the encoder's output.

Shapes: B rows of this device, S tokens of the pass (all of them, also where the device keeps a shard), T keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from edgempi.models.parts import Parts
from edgempi.ops.attention import Mask, build_mask
from edgempi.ops.linear import Linear, Poll
from edgempi.ops.relative import relative_bias
from edgempi.ops.rotary import rotary_table
from edgempi.plan.apportion import Span
from edgempi.plan.spec import Embedding, Stack

Project = Callable[[Tensor, Span, Poll], None]
"""Work out what attention needs of the tokens (B, s, D) of a span, and keep it."""
Reach = Callable[[Span], int]
"""Up to which token the queries of a span look."""
Core = Callable[[Span], Tensor]
"""Attend from the queries of a span: (B, s, own heads)."""
Inside = Callable[[Tensor, Poll], Tensor]
"""What stands between an MLP's entering and exiting product, both excluded: (B, s, D) to (B, s, own columns)."""


class Seam(Protocol):
    """Where a block meets communication; `parallel/seams.py` holds the kinds."""

    inner: Span
    outer: Span
    shares_keys: bool

    def enter(self, x: Tensor, linear: Linear, activation: str = "none") -> Tensor: ...

    def leave(self, y: Tensor, linear: Linear) -> Tensor: ...

    def sum(self, addend: Tensor) -> Tensor: ...

    def gather(self, x: Tensor) -> Tensor: ...

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]: ...

    def attend(self, x: Parts, project: Project, reach: Reach, core: Core, out: Linear) -> Parts: ...

    def through(self, x: Parts, inside: Inside, out: Linear) -> Parts: ...

    def pick(self, x_BSD: Tensor, index_B: Tensor) -> Tensor: ...


@dataclass
class Memory:
    """The encoder's output, as the decoder's layers of this device need it."""

    x: Tensor
    seam: Seam
    padding: Tensor | None


@dataclass
class Stream:
    """One stack's pass on one device.

    Attributes:
        ids: (B, S) token ids.
        offset: tokens of this sequence that are in the cache already.
        padding: (B, offset + S) boolean, True for real tokens; None where all are.
        types: (B, S) token types, None for all zero.
        relative_table: the own heads' columns of the relative bias table.
        memory: what cross-attention reads; None once its keys are cached.
    """

    stack: Stack
    ids: Tensor
    offset: int
    padding: Tensor | None
    types: Tensor | None
    dtype: torch.dtype
    embedding_seam: Seam
    attention_seam: Seam
    mlp_seam: Seam
    relative_table: Tensor | None = None
    memory: Memory | None = None
    memory_padding: Tensor | None = None
    _masks: dict[tuple[int | None, Span], Mask] = field(default_factory=dict)
    _rotary: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """S."""
        return self.ids.shape[1]

    def reach(self, span: Span) -> int:
        """Up to which token of this pass the queries of a span look."""
        return span[1] if self.stack.causal else self.tokens

    def mask(self, window: int | None, span: Span) -> Mask:
        """What the self-attention of a span's queries may see of the keys within its reach; built once."""
        if (window, span) not in self._masks:
            queries = torch.arange(*span) + self.offset
            keys = torch.arange(self.offset + self.reach(span))
            bias, padding = None, self.padding
            if self.stack.relative and self.relative_table is not None:
                bias = relative_bias(self.stack.relative, self.relative_table, queries, keys)
            if padding is not None:
                padding = padding[:, : len(keys)]
            self._masks[window, span] = build_mask(queries, keys, self.stack.causal, window, padding, bias)
        return self._masks[window, span]

    @property
    def cross_mask(self) -> Mask:
        """What cross-attention may see of the encoder's output."""
        return Mask(None if self.memory_padding is None else self.memory_padding[:, None, None, :])

    def rotary(self, span: Span) -> tuple[Tensor, Tensor]:
        """The rotary angles of a span's tokens."""
        assert self.stack.rotary is not None
        if self._rotary is None:
            positions = torch.arange(self.tokens)[None] + self.offset
            self._rotary = rotary_table(self.stack.rotary, positions, self.dtype)
        cosine, sine = self._rotary
        return cosine[:, slice(*span)], sine[:, slice(*span)]


def position_ids(embedding: Embedding, ids: Tensor, offset: int, padding: Tensor | None, pad: int | None) -> Tensor:
    """Rows of the position table for the S new tokens, (B, S)."""
    B, S = ids.shape
    match embedding.position_rule:
        case "mask" if padding is not None:  # OPT: masked tokens stand just before the first real one
            seen = padding.long()
            positions = (seen.cumsum(1) * seen - 1)[:, offset:]
        case "token":  # RoBERTa: padding stays at the padding row
            real = ids.ne(-1 if pad is None else pad).long()
            positions = real.cumsum(1) * real
        case _:
            positions = (torch.arange(S) + offset).expand(B, S)
    return positions + embedding.position_offset
