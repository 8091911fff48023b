"""In which order rows are seen, and who takes which: pure functions, the same on every rank and platform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgempi.errors import UserError
from edgempi.plan.apportion import Span, apportion, spans

MASK = (1 << 64) - 1


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` rows in an epoch: a permutation (n,) of int64, another one for each epoch.

    Rows are sorted by a hash of seed, epoch and row (the finaliser of splitmix64). So it depends neither on the number
    of ranks nor on the version of a random number generator, and a run is resumed by its epoch and batch alone.
    """
    salt = _mixed(np.array([_mixed(np.array([seed & MASK], np.uint64))[0] ^ np.uint64(epoch & MASK)], np.uint64))[0]
    return np.argsort(_mixed(np.arange(n, dtype=np.uint64) ^ salt), kind="stable").astype(np.int64)


def batches(rows: np.ndarray, size: int, skip: int = 0) -> Iterator[np.ndarray]:
    """Consecutive batches of `size` rows (the last may be smaller), without the first `skip` batches.

    Raises:
        UserError: the size is below one.
    """
    if size < 1:
        raise UserError("batch size", value=size, rule="it is at least 1", remedy="Set it to 16, say")
    for start in range(skip * size, len(rows), size):
        yield rows[start : start + size]


def rows_of_ranks(count: int, weights: Sequence[float]) -> tuple[Span, ...]:
    """Which rows of a batch of `count` each rank takes, in proportion to its weight; zero rows are legal.

    Raises:
        UserError: no weight is above zero, or one is below.
    """
    return spans(apportion(count, weights))


def _mixed(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
