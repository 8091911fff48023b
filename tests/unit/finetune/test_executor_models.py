"""Small real models on threads: every technique, hybrid and uneven, has the gradients of one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.wire import EXACT
from edgempi.finetune.data.collate import Rows, collate
from edgempi.finetune.executor import Executor
from edgempi.plan.plan import Plan
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.actions import classic_depths
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.workload import Workload
from models.zoo import PAD
from unit.comm.threads import on_ranks
from unit.finetune.toys import plan
from unit.finetune.tuned import KINDS, TUNINGS, gradients, loss, made, samples, trunk

ROWS = 7
MORE_S = 60.0
"""Loading a model between two messages takes its time where many share a core."""


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec]:
    """A checkpoint, and its spec."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, made(request.param, folder)[1]


def _plan(spec: ModelSpec, form: str) -> Plan:
    """Stages with borders inside both stacks where there are two; a pipeline has four where there are layers enough."""
    layers = len(pieces(spec))
    counts = [count for count in (1, layers - 3, 1, 1) if count]
    stages = {
        "data": [(layers, [0, 1, 2, 3], [2, 0, 1, 3])],
        "hybrid": [(1, [0, 1], [2, 1]), (layers - 1, [2, 3], [1, 3])],
        "pipeline": [(count, [(at - 1) % len(counts)], []) for at, count in enumerate(counts)],
    }[form]
    return plan(spec, stages, 3)


@pytest.mark.parametrize("form", ["data", "hybrid", "pipeline"])
@pytest.mark.parametrize("technique", TUNINGS)
def test_gradients_are_those_of_one_process(model: tuple[Path, ModelSpec], technique: str, form: str) -> None:
    folder, spec = model
    batch, stages = samples(spec, ROWS), _plan(spec, form)
    counted = Costs(pieces(spec), layer_bytes(spec, TUNINGS[technique], Workload(1, 8, 8)), ())
    whole = collate(batch, PAD)
    alone = trunk(folder, spec, technique, seed=1)
    total = loss(alone, whole).total
    (total / whole.targets).backward()
    expected = gradients(alone)

    def run(world: World) -> tuple[float, dict[str, Tensor], bool]:
        with torch.inference_mode(False):
            mine = trunk(folder, spec, technique, stages.stage_of(world.rank).units, seed=1)
            depths = classic_depths(len(stages.stages))
            executor = Executor(world, stages, counted, mine, depths, ROWS, bucket_bytes=2000, wire=EXACT)
            kept: dict[tuple[str, ...], dict[str, Tensor]] = {}
            collated = partial(collate, batch, PAD)
            first = executor.step(ROWS, collated, whole.targets, keep=lambda rows, found: _keep(kept, rows, found))
            found = {name: x.clone() for name, x in gradients(mine).items()}
            again = True
            if technique == "parallel_adapter":
                mine.drop_backbone()
                executor.step(ROWS, collated, whole.targets, lambda rows: kept[rows.keys].__getitem__)
                again = all(torch.equal(x, found[name]) for name, x in gradients(mine).items())
            executor.close()
            return first.loss_sum, found, again

    ranks = on_ranks(len(stages.devices), run, timeout_s=MORE_S)
    assert sum(loss_sum for loss_sum, _, _ in ranks) == pytest.approx(total.item(), rel=1e-10)
    assert {name for _, found, _ in ranks for name in found} == expected.keys()
    for _, found, again in ranks:
        assert again
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-11, msg=name)


def _keep(kept: dict[tuple[str, ...], dict[str, Tensor]], rows: Rows, found: dict[str, Tensor]) -> None:
    kept[rows.keys] = found
