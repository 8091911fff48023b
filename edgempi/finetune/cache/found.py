"""What reading gives, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from edgempi.finetune.cache.codec import Codec
from edgempi.finetune.cache.record import Header


class Tier(Enum):
    """Where a sample comes from, nearest first."""

    MEMORY = "memory"
    DISK = "disk"
    RECOMPUTE = "recompute"


@dataclass(frozen=True)
class Budget:
    """What a cache may take on one device.

    Args:
        memory_bytes: for records kept in memory.
        disk_bytes: for shards; None for as much as there is, 0 for no disk.
    """

    memory_bytes: int = 0
    disk_bytes: int | None = None


@dataclass
class Counters:
    """Since the cache was opened.

    Args:
        memory_hits: reads that memory served whole.
        disk_hits: reads that needed the disk.
        misses: reads of samples that are not here whole, to be computed.
        read_bytes: read from disk for them.
        stored: puts that found room.
        refused: puts that found none.
        recomputed: puts of samples that a read had missed, or a put had refused, before.
        damaged: records whose checksum differed when they were read, and which were dropped.
        imported: records added as bytes.
        deleted: samples.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    stored: int = 0
    refused: int = 0
    recomputed: int = 0
    damaged: int = 0
    imported: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Found:
    """What is cached of a sample, still in the cache's form; empty where it must be computed again.

    Args:
        sample: which.
        tier: the farthest place that a part of it came from.
    """

    sample: int
    tier: Tier
    _codec: Codec = field(repr=False)
    _records: Sequence[tuple[Header, Tensor]] = field(default=(), repr=False)
    _layers: frozenset[int] = field(default=frozenset(), repr=False)

    def __bool__(self) -> bool:
        return self.tier is not Tier.RECOMPUTE

    @property
    def nbytes(self) -> int:
        """Of the records that are held."""
        return sum(header.nbytes for header, _ in self._records)

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The hidden states by layer in the key's order, (T, D / factor) each, or (T, D) for a layer kept full.

        They are the caller's own. Empty where the sample must be computed.
        """
        result: dict[str, Tensor] = {}
        for header, record in self._records:
            result.update(self._codec.decode(record, header, dtype))
        names = self._codec.key.layers
        return {names[place]: result[names[place]] for place in sorted(self._layers)}
