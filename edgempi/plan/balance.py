"""Exact shares of one block: so many units for each device that the slowest one is as fast as it can be.

For unequal devices with limited memory, the smallest T for which sum_d min(units_d(T), most_d) >= total is found by
bisection; units_d(T) is what device d does within T. Galaxy (arXiv 2405.17245) rounds proportional shares instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgempi.cluster.profile import DeviceTimes
from edgempi.plan.spec import ModelSpec, Stack

ROUNDS = 60
"""Halvings of the interval of T: beyond the precision of a float's mantissa."""


@dataclass(frozen=True)
class Cost:
    """What a device takes for a share of `units`: nothing for none, else a fixed part and a part for each."""

    fixed_s: float
    per_unit_s: float

    def of(self, grain: int) -> Cost:
        """The cost where units come in grains of so many."""
        return Cost(self.fixed_s, self.per_unit_s * grain)

    def units(self, seconds: float) -> int:
        """How many units are done within `seconds`."""
        return max(0, int((seconds - self.fixed_s) / self.per_unit_s + 1e-9))

    def seconds(self, units: int) -> float:
        """Of a share."""
        return self.fixed_s + units * self.per_unit_s if units else 0.0


def balance(total: int, costs: Sequence[Cost], most: Sequence[int]) -> tuple[int, ...] | None:
    """Share `total` units so that the largest of the devices' times is least.

    Args:
        total: units to share.
        costs: one per device.
        most: units that each device has memory for.

    Returns:
        One count per device; None where the devices have no room for all.
    """
    if sum(most) < total:
        return None
    low, high = 0.0, max(cost.seconds(total) for cost in costs)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        if sum(min(cost.units(middle), cap) for cost, cap in zip(costs, most, strict=True)) >= total:
            high = middle
        else:
            low = middle
    counts = [min(cost.units(high), cap) for cost, cap in zip(costs, most, strict=True)]
    while sum(counts) > total:  # where several would do, the one that is slowest gives
        slowest = max(range(len(counts)), key=lambda d: costs[d].seconds(counts[d]) if counts[d] else -1.0)
        counts[slowest] -= 1
    return tuple(counts)


def attention_cost(times: DeviceTimes, stack: Stack, rows: int, tokens: int) -> Cost:
    """Of self-attention on all tokens, by key-value head with its queries."""
    group, size = stack.group, stack.head_dim
    pairs = tokens * tokens * (times.causal_share if stack.causal else 1.0)
    weights = (2 * group + 2) * size * stack.width * (2 if stack.cross else 1)
    per_unit = weights * (2 * rows * tokens * times.linear.s_per_flop + times.linear.s_per_weight)
    per_unit += rows * pairs * group * size * times.attention.s_per_element
    return Cost(2 * times.linear.call_s + times.attention.call_s, per_unit)


def mlp_cost(times: DeviceTimes, stack: Stack, rows: int, tokens: int) -> Cost:
    """Of the MLP on all tokens, by intermediate column."""
    weights = (3 if stack.gated else 2) * stack.width
    per_unit = weights * (2 * rows * tokens * times.linear.s_per_flop + times.linear.s_per_weight)
    return Cost(2 * times.linear.call_s, per_unit)


def head_cost(times: DeviceTimes, spec: ModelSpec, rows: int, tokens: int) -> Cost:
    """Of the output product, by row of the vocabulary."""
    width = spec.head.project_width or spec.stacks[spec.last].width
    per_unit = width * (2 * rows * tokens * times.linear.s_per_flop + times.linear.s_per_weight)
    return Cost(times.linear.call_s, per_unit)


def layers_s(times: DeviceTimes, spec: ModelSpec, rows: int, tokens: dict[str, int]) -> dict[str, float]:
    """Seconds that one whole layer of each stack takes on a device, connective blocks included."""
    found = {}
    for name, stack in spec.stacks.items():
        attention = attention_cost(times, stack, rows, tokens[name]).seconds(stack.kv_heads)
        mlp = mlp_cost(times, stack, rows, tokens[name]).seconds(stack.mlp_columns)
        between = 2 * times.connective.seconds(rows * tokens[name] * stack.width)
        found[name] = attention + mlp + between
    return found
