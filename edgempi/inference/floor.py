"""The computation of a plan without its communication: what a rank would take if every message were there at once."""

from __future__ import annotations

from dataclasses import replace

from edgempi.comm import Group, World
from edgempi.comm.mute import Mute
from edgempi.parallel.executor import Executor


def muted(executor: Executor) -> Executor:
    """The same units, tiles and products, over a transport that moves nothing. Not collective.

    What comes out is not the model's output. Messages are rounded to their wire format as ever: that is computation.
    """
    world, stage = executor.world, executor.plan.stage_of(executor.world.rank)
    silent = World(Mute(world.rank, world.size), world.timeout_s)
    group = Group(Mute(executor.group.rank, stage.size), stage.devices, silent.traffic, lambda: world.timeout_s)
    return replace(executor, world=silent, group=group)
