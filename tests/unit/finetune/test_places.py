"""A run's state, gathered from its devices and spread over others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.finetune.checkpoint import Checkpoints, Gathered, Identity, Position, gathering, load_trained, spreading
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.training.technique import Technique, Tuning

UNITS = ("enc.embed", "enc.0", "enc.1", "enc.2", "head")
TRAINED = {
    "enc.embed": ["side.enc.embed.down.weight"],
    "enc.0": ["side.enc.0.gate", "side.enc.relative.weight"],
    "enc.1": ["side.enc.1.gate", "side.enc.relative.weight"],
    "enc.2": ["side.enc.2.gate", "side.enc.relative.weight"],
    "head": ["head.out.weight"],
}


def _plan(*stages: tuple[int, tuple[int, ...]]) -> Plan:
    """Stages as (units, devices)."""
    found, first = [], 0
    for count, devices in stages:
        found.append(Stage(UNITS[first : first + count], devices, PRESETS["data"], rows=(1.0,) * len(devices)))
        first += count
    return Plan(tuple(found))


def test_gathering_takes_each_parameter_once_from_one_that_has_it() -> None:
    moves = gathering(_plan((2, (1,)), (3, (0, 2, 3))), TRAINED)
    assert {move.name: move.source for move in moves} == {
        "side.enc.embed.down.weight": 1, "side.enc.0.gate": 1, "side.enc.relative.weight": 0,
        "side.enc.1.gate": 0, "side.enc.2.gate": 0, "head.out.weight": 0,
    }  # fmt: skip
    assert len({move.name for move in moves}) == len(moves) and {move.target for move in moves} == {0}
    # Replicas take turns.
    sources = [move.source for move in gathering(_plan((1, (0,)), (4, (1, 2))), TRAINED)]
    assert sources == [0, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("then", [_plan((5, (0,))), _plan((3, (2,)), (2, (0, 1))), _plan((5, (0, 1, 2, 3, 4)))])
def test_a_run_goes_on_with_other_devices(then: Plan, tmp_path: Path) -> None:
    """Gathered from two stages, written, read, spread over another plan: each device has its units' parameters."""
    before = _plan((2, (0,)), (3, (1, 2)))
    names = list(dict.fromkeys(name for unit in TRAINED.values() for name in unit))
    value = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    held = {
        device: {name: value[name] for unit in stage.units for name in TRAINED[unit]}
        for stage in before.stages
        for device in stage.devices
    }
    moves = {move.name: move.source for move in gathering(before, TRAINED)}
    gathered = Gathered(moves, lambda name: held[moves[name]][name])
    identity = Identity("beef", "cafe", Tuning(Technique.parallel_adapter), "adamw")
    folder = Checkpoints(tmp_path, identity).save(Position(1, 0, 1, seed=7, order=""), gathered, {})

    arrived: dict[int, dict[str, Tensor]] = {}
    for move in spreading(then, TRAINED):
        arrived.setdefault(move.target, {}).update(load_trained(folder, [move.name]))
    for stage in then.stages:
        for device in stage.devices:
            wanted = {name for unit in stage.units for name in TRAINED[unit]}
            assert set(arrived[device]) == wanted
            assert all(torch.equal(arrived[device][name], value[name]) for name in wanted)
