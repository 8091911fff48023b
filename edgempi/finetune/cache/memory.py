"""The records that are kept in memory, as bytes.

Who came first stays. An epoch reads every sample once, in an order of its own; keeping the most recently read ones
would find none of them again, while a fixed part is found again in every epoch: as much as memory holds, which is the
most there can be. The one exception: a record that found no room on disk takes the place of copies of records that
are on disk too, the youngest copies first; so memory and disk together hold as much as both budgets allow.
"""

from __future__ import annotations

from torch import Tensor

from edgempi.finetune.cache.index import Ref


class Memory:
    """Records under a budget.

    Args:
        budget_bytes: the most bytes that they may take.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._records: dict[Ref, Tensor] = {}
        self._copies: dict[Ref, None] = {}
        self._copied_bytes = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def get(self, ref: Ref) -> Tensor | None:
        """A record's bytes, not to be written to."""
        return self._records.get(ref)

    def offer(self, ref: Ref, record: Tensor) -> bool:
        """Keep a record if there is room; whether it is kept."""
        if ref in self._records:
            return True
        if ref.shard is None and self.nbytes - self._copied_bytes + ref.nbytes <= self._budget_bytes:
            while self.nbytes + ref.nbytes > self._budget_bytes:
                self.drop(next(reversed(self._copies)))
        if self.nbytes + ref.nbytes > self._budget_bytes:
            return False
        self._records[ref] = record
        self.nbytes += ref.nbytes
        if ref.shard is not None:
            self._copies[ref] = None
            self._copied_bytes += ref.nbytes
        return True

    def drop(self, ref: Ref) -> None:
        """Forget a record, if it is here."""
        if self._records.pop(ref, None) is None:
            return
        self.nbytes -= ref.nbytes
        if ref in self._copies:
            del self._copies[ref]
            self._copied_bytes -= ref.nbytes
