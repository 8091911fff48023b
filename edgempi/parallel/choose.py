"""`overlap: auto`: which way of hiding communication is fastest under the MPI and on the links at hand.

It depends on the MPI library, on what links and processors do to each other, and on how much there is to hide, so it is
measured: an MLP of the model's width over the stage's own shares, by each mode in turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import torch

from edgempi.comm import Group, World
from edgempi.models.parts import Parts
from edgempi.models.weights import TORCH_DTYPES
from edgempi.ops.linear import Linear, Poll, Route
from edgempi.parallel.seam import seam
from edgempi.plan.plan import Connective, Plan, Stage
from edgempi.plan.spec import ModelSpec

CANDIDATES = ("ring", "icollective", "blocking")
"""Of those that are equally fast the first is taken."""
TOKENS, ROUNDS = 64, 3
CLEARLY = 0.95
"""What share of an earlier candidate's time makes a later one worth taking: less is noise."""


def settle_overlap(world: World, group: Group, plan: Plan, spec: ModelSpec, route: Route) -> Plan:
    """The plan with `auto` replaced by what was measured fastest. Collective: every rank of `world`, same plan.

    Args:
        world: all ranks.
        group: the ranks of this rank's stage.
        plan: whose stages share as they will; ranks of a stage end up with the same mode.
        spec: the model.
        route: how linears keep their weights.
    """
    if plan.overlap != "auto":
        return plan
    stage = plan.stage_of(world.rank)
    seconds = dict.fromkeys(CANDIDATES, 0.0)
    if stage.size > 1 and stage.modes.connective == Connective.tokens and stage.mlp_columns:
        seconds = _measure(group, plan, stage, spec, route)
    everyone = world.all_gather_json(seconds)
    slowest = {mode: max(everyone[rank][mode] for rank in stage.devices) for mode in CANDIDATES}
    return replace(plan, overlap=_pick(slowest))


def _pick(seconds: Mapping[str, float]) -> str:
    best = CANDIDATES[0]
    for mode in CANDIDATES[1:]:
        if seconds[mode] < seconds[best] * CLEARLY:
            best = mode
    return best


def _measure(group: Group, plan: Plan, stage: Stage, spec: ModelSpec, route: Route) -> dict[str, float]:
    stack = spec.stacks[spec.last]
    columns = next(iter(stage.mlp_columns.values()))[group.rank]
    dtype = TORCH_DTYPES[plan.weight_dtype]
    # Values do not matter for the time, but what is not a normal number would.
    up = Linear(torch.full((columns, stack.width), 1e-3, dtype=dtype), None, route, plan.column_blocks)
    down = Linear(torch.full((stack.width, columns), 1e-3, dtype=dtype), None, route, plan.column_blocks)

    def inside(x: torch.Tensor, between: Poll) -> torch.Tensor:
        return up(x, between=between)

    taken: dict[str, list[float]] = {mode: [] for mode in CANDIDATES}
    for _ in range(ROUNDS + 1):
        for mode in CANDIDATES:
            meet = seam(replace(plan, overlap=mode), stage, group, TOKENS, True)
            own = meet.outer[1] - meet.outer[0]
            x = torch.full((1, own, stack.width), 1e-3, dtype=dtype)
            start = time.perf_counter()
            meet.through(Parts.of(x), inside, down).whole()
            group.drain()
            taken[mode].append(time.perf_counter() - start)
    return {mode: median(seconds[1:]) for mode, seconds in taken.items()}
