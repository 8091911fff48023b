"""Cut a whole into whole-numbered shares.

Heads, MLP columns, vocabulary rows, tokens and batch rows are all shared by the same rule, the method of the largest
remainder: no share is further than one quantum from its ideal, and a weight of zero always gets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf

from edgempi.errors import UserError

Span = tuple[int, int]
"""A half-open range (start, stop)."""


def apportion(total: int, weights: Sequence[float], quantum: int = 1) -> tuple[int, ...]:
    """Share `total` units in proportion to `weights`, in multiples of `quantum` where that divides the total.

    Args:
        total: units to share, zero or more.
        weights: one per device, zero or more, not all zero.
        quantum: the grain (a KV group, a quantisation group); a total that it does not divide keeps its rest
            with the last device that has a share.

    Returns:
        One count per device, summing to `total`; ties go to the earlier device, so every rank computes the same.

    Raises:
        UserError: no weight is above zero, or one is below.
    """
    if min(weights, default=-1.0) < 0 or not 0 < sum(weights) < inf:
        raise UserError(
            "share weights", value=list(weights),
            rule="weights are finite, none is below zero and at least one is above zero",
            remedy="Give one weight per device",
        )  # fmt: skip
    grains, rest = divmod(total, quantum)
    scale = grains / sum(weights)
    ideals = [weight * scale for weight in weights]
    counts = [int(ideal) for ideal in ideals]
    willing = [i for i, weight in enumerate(weights) if weight > 0]
    by_remainder = sorted(willing, key=lambda i: (counts[i] - ideals[i], i))
    for k in range(grains - sum(counts)):
        counts[by_remainder[k % len(by_remainder)]] += 1
    shares = [count * quantum for count in counts]
    if rest:
        shares[max((i for i in willing if counts[i]), default=willing[-1])] += rest
    return tuple(shares)


def spans(counts: Sequence[int]) -> tuple[Span, ...]:
    """The consecutive ranges that `counts` cut a whole into."""
    stops = list(accumulate(counts))
    return tuple((stop - count, stop) for count, stop in zip(counts, stops, strict=True))


def length(span: Span) -> int:
    """How many units a range holds."""
    return span[1] - span[0]
