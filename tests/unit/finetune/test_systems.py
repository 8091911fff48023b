"""The loop over the executor on several ranks: every way of sharing has the losses of one device, cached or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.wire import EXACT
from edgempi.finetune.checkpoint.position import Position
from edgempi.finetune.course import Calls, Course, Phase
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.order import order
from edgempi.finetune.executor import Executor
from edgempi.finetune.loop import train
from edgempi.finetune.optim import Optimizing, Updater
from edgempi.finetune.orders import homes_of
from edgempi.finetune.picked import Data
from edgempi.finetune.rhythm import CACHED, Extent, Phases, Rhythm
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import classic_depths
from edgempi.plan.training.pac import Continuation
from edgempi.plan.training.redistribute import Holding, filled
from edgempi.plan.training.technique import Tuning
from unit.comm.threads import on_ranks
from unit.finetune.toys import FULL, PAD, SIDE, ToyTrunk, costs, plan, samples, spec

MODEL = spec(2, 2)
COUNT, SIZE, EPOCHS, SEED = 11, 5, 3, 3
HOW = Optimizing(rate=0.02, clip=0.3)
Stages = Sequence[tuple[int, Sequence[int], Sequence[int]]]
ALONE: Stages = [(4, [0], [])]
SYSTEMS: dict[str, tuple[int, Stages]] = {
    "standalone": (1, ALONE),
    "eddl": (3, [(4, [0, 1, 2], [3, 0, 1])]),
    "ecofl": (3, [(1, [2], []), (2, [0], []), (1, [1], [])]),
    "asteroid": (4, [(2, [0, 1], [3, 1]), (2, [2, 3], [1, 2])]),
}
HYBRID, SHARED = SYSTEMS["asteroid"][1], [(4, [0, 1, 2, 3], [2, 1, 1, 1])]


class Kept:
    """What the ranks, which are threads, share: activations by sample, and what a switch hands on."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Tensor]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}
        self.reads = 0

    def keep(self, rows: Rows, kept: Mapping[str, Tensor]) -> None:
        """Keep real tokens only."""
        for unit, x_BSD in kept.items():
            padding = rows.batch.padding(unit.partition(".")[0])
            for row, key in enumerate(rows.keys):
                real = slice(None) if padding is None else slice(int(padding[row].sum()))
                self.rows.setdefault(key, {})[unit] = x_BSD[row, real].clone()

    def read(self, rows: Rows) -> Any:
        """Give them padded."""

        def reader(unit: str) -> Tensor:
            self.reads += 1
            found = [self.rows[key][unit] for key in rows.keys]
            S = rows.batch.ids(unit.partition(".")[0]).shape[1]
            return torch.stack([torch.nn.functional.pad(x_SD, (0, 0, 0, S - len(x_SD))) for x_SD in found])

        return reader


def _run(
    tuning: Tuning, size: int, stages: Stages, phases: Phases, orders: Any, later: Stages = ()
) -> tuple[list[float], Kept]:
    """The losses of all updates, the same on every rank; the first epoch under `stages`, cached ones under `later`."""
    kept, data = Kept(), Data(samples(MODEL, COUNT, ragged=True), SIZE, PAD)
    course = Course(Extent(data.batches, EPOCHS, 2), HOW, phases, Rhythm(None, None, None))

    def body(world: World) -> list[float]:
        losses: list[float] = []

        def enter(name: str, before: Phase | None, updater: Updater | None) -> Phase:
            cached = name == CACHED
            made: Plan = plan(MODEL, later if cached else stages, 2)
            units = next((stage.units for stage in made.stages if world.rank in stage.devices), ())
            trunk = ToyTrunk(MODEL, units, tuning, torch.float64)
            if before is not None and updater is not None:
                kept.tensors |= {name: tensor.detach().clone() for name, tensor in before.tensors.items()}
                kept.state |= {name: tensor.clone() for name, tensor in updater.state().items()}
                world.barrier()
                with torch.no_grad():
                    for name, tensor in trunk.trained.tensors.items():
                        tensor.copy_(kept.tensors[name])
                assert isinstance(before.executor, Executor)
                before.executor.close()
            bytes_ = costs(MODEL, tuning, size, cached)
            depths = classic_depths(len(made.stages))
            executor = Executor(world, made, bytes_, trunk, depths, SIZE, bucket_bytes=1, wire=EXACT)
            return Phase(
                "cached" if cached else "train", executor, trunk.trained.tensors, orders, kept.state,
                read=kept.read if cached else None, keep=None if cached or tuning is FULL else kept.keep,
            )  # fmt: skip

        with torch.inference_mode(False):
            calls = Calls(moved=lambda moved: losses.append(moved.loss))
            outcome = train(world, data, course, enter, calls, Position(0, 0, 0, SEED, ""))
            assert isinstance(outcome.phase.executor, Executor)
            outcome.phase.executor.close()
        return losses

    found = on_ranks(size, body)
    assert all(losses == found[0] for losses in found)
    return found[0], kept


def _shuffled(epoch: int) -> np.ndarray:
    return order(SEED, epoch, COUNT)


@pytest.mark.parametrize("tuning", [FULL, SIDE], ids=["full", "side"])
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "standalone"])
def test_systems_have_the_losses_of_one_device(system: str, tuning: Tuning) -> None:
    alone, _ = _run(tuning, 1, ALONE, Phases(), _shuffled)
    shared, _ = _run(tuning, *SYSTEMS[system], Phases(), _shuffled)
    assert len(alone) == 6
    assert alone[-1] < alone[0]
    assert shared == pytest.approx(alone, rel=1e-8)


@pytest.mark.parametrize("later", [SHARED, HYBRID], ids=["redistribute", "in place"])
def test_cached_epochs_have_the_losses_of_one_device(later: Stages) -> None:
    first, second = plan(MODEL, HYBRID, 2), plan(MODEL, later, 2)
    bytes_ = costs(MODEL, SIDE, 4)
    held: list[Holding] = [()] * COUNT
    for start in range(0, COUNT, SIZE):
        batch = _shuffled(0)[start : start + SIZE].tolist()
        for number, holding in zip(batch, filled(first, bytes_, len(batch)), strict=True):
            held[number] = holding
    homes = homes_of(held, second, bytes_, SIZE, _shuffled(0))

    def pinned(epoch: int) -> np.ndarray:
        return homes.order(SEED, epoch) if epoch else _shuffled(0)

    alone, unread = _run(SIDE, 1, ALONE, Phases(), pinned)
    shared, kept = _run(SIDE, 4, HYBRID, Phases(Continuation.redistribute), pinned, later)
    assert unread.reads == 0
    assert kept.reads > 0
    assert shared == pytest.approx(alone, rel=1e-8)
