"""What goes into a pass.

Shapes: B rows of the whole batch, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from edgempi.plan.apportion import Span
from edgempi.plan.spec import ModelSpec


@dataclass(frozen=True)
class Batch:
    """What goes in, equal on every rank: ids (B, S), and which of them are real (None: all).

    A decoder-only or encoder-only model has one pair. `types` belongs to the encoder's ids.
    """

    enc_ids: Tensor | None = None
    enc_padding: Tensor | None = None
    dec_ids: Tensor | None = None
    dec_padding: Tensor | None = None
    types: Tensor | None = None

    @classmethod
    def of(cls, spec: ModelSpec, ids: Tensor, padding: Tensor | None = None) -> Batch:
        """One forward pass over `ids`; an encoder-decoder's decoder reads the same ids, unmasked."""
        if spec.enc is None:
            return cls(dec_ids=ids, dec_padding=padding)
        return cls(enc_ids=ids, enc_padding=padding, dec_ids=None if spec.dec is None else ids)

    @property
    def rows(self) -> int:
        """B."""
        ids = self.dec_ids if self.enc_ids is None else self.enc_ids
        assert ids is not None
        return len(ids)

    def ids(self, stack: str) -> Tensor:
        """The ids of one stack."""
        ids = self.enc_ids if stack == "enc" else self.dec_ids
        assert ids is not None
        return ids

    def padding(self, stack: str) -> Tensor | None:
        """The padding mask of one stack."""
        return self.enc_padding if stack == "enc" else self.dec_padding

    def cut(self, rows: Span) -> Batch:
        """The given rows."""
        parts = (self.enc_ids, self.enc_padding, self.dec_ids, self.dec_padding, self.types)
        return Batch(*(None if part is None else part[slice(*rows)] for part in parts))

    def chunk(self, tokens: Span, seen: int) -> Batch:
        """The given tokens of a decoder that has seen `seen` before these ids; they are masked with all up to them."""
        assert self.dec_ids is not None
        padding = None if self.dec_padding is None else self.dec_padding[:, : seen + tokens[1]]
        return replace(self, dec_ids=self.dec_ids[:, slice(*tokens)], dec_padding=padding)
