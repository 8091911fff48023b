"""The planner of Galaxy (arXiv 2405.17245, heterogeneity- and memory-aware planning), kept as the reference.

1. Capacity from the profile: V_d = 1 / (t_d(full attention) + t_d(full MLP)).
2. Balanced partition: heads and MLP columns in proportion to V, rounded.
3. Memory: l (M_att a_d/H + M_mlp b_d/f) <= budget of d, the layers' weights alone.
4. Rebalancing: what overflows goes to devices that have room, in proportion to V; MLP columns first, whose grain is
   finer, then heads. Nobody has room left: infeasible.
5. Tokens are shared equally.

The paper says nothing of the embedding table; here its rows follow V, and memory does not count them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf

from edgempi.cluster.profile import ClusterProfile
from edgempi.errors import UserError
from edgempi.plan.apportion import apportion
from edgempi.plan.balance import attention_cost, mlp_cost
from edgempi.plan.memory import unit_bytes
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.planners import Forms, column_counts, head_counts
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload

Shares = dict[str, list[int]]
"""Units of each device, by stack."""


def plan_galaxy(spec: ModelSpec, work: Workload, cluster: ClusterProfile, forms: Forms) -> Plan:
    """The published plan: one hybrid stage over all devices.

    Args:
        spec: the model.
        work: for which capacities are worked out.
        cluster: measured.
        forms: dtypes, and how communication is driven.

    Raises:
        UserError: the devices' budgets do not hold the layers.
    """
    capacities = [1 / seconds for seconds in _full_layer_s(spec, work, cluster)]
    heads = {name: [n // s.group for n in head_counts(s, capacities)] for name, s in spec.stacks.items()}
    columns = {name: list(column_counts(stack, capacities)) for name, stack in spec.stacks.items()}
    budgets = [inf if d.memory_budget_bytes is None else d.memory_budget_bytes for d in cluster.devices]
    names = [device.name for device in cluster.devices]
    _rebalance(columns, heads, _of_layers(spec, forms.weight_dtype), capacities, budgets, names)
    stage = Stage(
        units=spec.units,
        devices=tuple(range(cluster.size)),
        modes=PRESETS["hybrid"] if cluster.size > 1 else PRESETS["single"],
        heads={name: tuple(n * spec.stacks[name].group for n in counts) for name, counts in heads.items()},
        mlp_columns={name: tuple(counts) for name, counts in columns.items()},
        vocabulary=apportion(spec.stacks[spec.last].embedding.vocabulary, capacities),
        tokens=(1.0,) * cluster.size,
    )
    return forms.plan((stage,))


def _full_layer_s(spec: ModelSpec, work: Workload, cluster: ClusterProfile) -> list[float]:
    found = []
    for device in cluster.devices:
        assert device.times is not None, "planners that need times refuse a profile without"
        found.append(0.0)
        for name, stack in spec.stacks.items():
            tokens = work.of(spec, name)
            found[-1] += attention_cost(device.times, stack, work.rows, tokens).seconds(stack.kv_heads)
            found[-1] += mlp_cost(device.times, stack, work.rows, tokens).seconds(stack.mlp_columns)
    return found


def _of_layers(spec: ModelSpec, weight_dtype: str) -> dict[str, tuple[float, float]]:
    """By stack: bytes of a key-value head with its queries, and of an MLP column."""
    sizes = unit_bytes(spec, weight_dtype)
    return {n: (sizes[f"{n} heads"] * stack.group, sizes[f"{n} columns"]) for n, stack in spec.stacks.items()}


def _rebalance(
    columns: Shares,
    heads: Shares,
    unit_bytes: Mapping[str, tuple[float, float]],
    capacities: Sequence[float],
    budgets: Sequence[float],
    names: Sequence[str],
) -> None:
    """Move what overflows to devices that have room."""

    def room(device: int) -> float:
        held = sum(heads[n][device] * of_head + columns[n][device] * of_column
                   for n, (of_head, of_column) in unit_bytes.items())  # fmt: skip
        return budgets[device] - held

    kinds = [(columns[name], sizes[1]) for name, sizes in unit_bytes.items()]
    kinds += [(heads[name], sizes[0]) for name, sizes in unit_bytes.items()]
    for shares, size in kinds:
        for device in range(len(budgets)):
            excess = min(shares[device], ceil(-room(device) / size)) if room(device) < 0 else 0
            while excess:
                fits = [0 if d == device else _floor(room(d) / size) for d in range(len(budgets))]
                if not any(fits):
                    break
                wanted = apportion(excess, [v if fit else 0.0 for v, fit in zip(capacities, fits, strict=True)])
                for taker, (want, fit) in enumerate(zip(wanted, fits, strict=True)):
                    taken = min(want, fit)
                    shares[taker] += taken
                    shares[device] -= taken
                    excess -= taken
    for device, name in enumerate(names):
        if room(device) < 0:
            raise UserError(
                f"device {name}", value=f"{-room(device) / 1e6:.0f} MB more layers than it lends memory for",
                rule="the layers fit into the budgets of all devices together",
                remedy="Add devices, use weights=bf16, or raise budgets (planner=auto says by how much)",
            )  # fmt: skip


def _floor(units: float) -> int:
    """Whole units that fit; any number where memory has no limit."""
    return 2**62 if units == inf else max(0, int(units))
