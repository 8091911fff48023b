"""A prompt in chunks gives what it gives in one: with padding on either side, with caches, whatever the chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.inference.runner import Runner
from edgempi.models.source import read_spec
from edgempi.models.stream import Seam
from edgempi.ops.linear import PLAIN
from edgempi.parallel.batch import Batch
from edgempi.parallel.chunks import Picked
from edgempi.parallel.outputs import collect
from edgempi.parallel.seams import Whole
from edgempi.plan.plan import Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from models.zoo import FAMILIES, VARIANTS, build
from unit.comm.threads import on_ranks

ROWS, TOKENS, STEPS = 3, 12, 3
EARLIER = 5
"""Tokens of a prompt that are in the cache before the rest is cut into chunks."""
MODELS = {model.name: model for model in (*FAMILIES, *VARIANTS)}
TOLERANCE = 2e-5
"""Of the largest magnitude."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("opt", "mistral", "gpt2-classifier")
    made = {name: tmp_path_factory.mktemp(name) for name in names}
    for name, folder in made.items():
        build(MODELS[name], folder)
    return made


@pytest.mark.parametrize("name", ["opt", "mistral", "gpt2-classifier"])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (0, 5, 1, 0, 2)], ids=str)
def test_outputs_of_padded_rows(folders: dict[str, Path], name: str, left: bool, chunks: tuple[float, ...]) -> None:
    # The second row has fewer real tokens than the first or last chunk; the third has one.
    real = torch.arange(TOKENS)[None] < torch.tensor([[TOKENS], [4], [1]])
    padding = real.flip(1) if left else real
    ids = torch.where(padding, _ids(), 3)
    whole, found = (_outputs(folders[name], Batch(dec_ids=ids, dec_padding=padding), c) for c in ((), chunks))
    if whole.shape[1] == TOKENS:  # what stands at padding counts for nobody
        whole, found = whole[padding], found[padding]
    assert (found - whole).abs().max() <= TOLERANCE * whole.abs().max()


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_decoding_goes_on_from_the_chunks_caches(folders: dict[str, Path], left: bool) -> None:
    whole, found = (_decoded(folders["mistral"], left, chunks) for chunks in ((), (3.0, 1.0, 2.0)))
    assert (found - whole).abs().max() <= TOLERANCE * whole.abs().max()


def test_every_chunk_travels_by_itself(folders: dict[str, Path]) -> None:
    spec, program = _program(folders["opt"], (2, 0, 1, 1))

    def run(world: World) -> dict[str, int]:
        runner = Runner(world, program, spec, folders["opt"], PLAIN)
        world.traffic.reset()
        runner.forward(Batch(dec_ids=_ids()))
        return {unit: count for unit, count in world.traffic.messages.items() if count}

    first, last = on_ranks(2, run)
    assert list(first.values()) == [3]
    assert not last


def test_a_lone_stage_is_not_cut(folders: dict[str, Path]) -> None:
    spec = read_spec(folders["opt"])
    alone = plan_program(spec, [1.0], ParallelConfig(modes=[Sharing.single]), PlannerConfig(), Forms())
    cut = Program({name: replace(plan, token_chunks=(1.0, 1.0)) for name, plan in alone.phases.items()})

    def run(world: World) -> int:
        return len(Runner(world, cut, spec, folders["opt"], PLAIN).forward(Batch(dec_ids=_ids())))

    assert on_ranks(1, run) == [1]


def test_picked_tokens_come_from_the_chunks_that_hold_them() -> None:
    x = torch.arange(3.0 * 6 * 2).view(3, 6, 2)
    picked = Picked(torch.tensor([5, 0, 3]))
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        picked.take(x[:, start:stop], _seam(stop - start), (start, stop))
    assert torch.equal(picked.whole(x)[:, 0], torch.stack((x[0, 5], x[1, 0], x[2, 3])))


def test_a_device_without_rows_picks_nothing() -> None:
    x = torch.zeros(0, 6, 2)
    picked = Picked(torch.empty(0, dtype=torch.long))
    picked.take(x, _seam(6), (0, 6))
    assert picked.whole(x).shape == (0, 1, 2)


def _seam(tokens: int) -> Seam:
    return Whole(tokens)


def _ids() -> Tensor:
    return torch.randint(4, 61, (ROWS, TOKENS), generator=torch.Generator().manual_seed(7))


def _program(folder: Path, chunks: Sequence[float]) -> tuple[ModelSpec, Program]:
    spec = read_spec(folder)
    parallel = ParallelConfig(modes=[Sharing.single], pipeline=True, decode=None)
    forms = Forms(token_chunks=tuple(map(float, chunks)))
    return spec, plan_program(spec, [1.0, 1.0], parallel, PlannerConfig(), forms)


def _outputs(folder: Path, batch: Batch, chunks: Sequence[float]) -> Tensor:
    spec, program = _program(folder, chunks)
    found = on_ranks(2, lambda world: Runner(world, program, spec, folder, PLAIN).outputs(batch))
    return found[0]["logits"]


def _decoded(folder: Path, left: bool, chunks: Sequence[float]) -> Tensor:
    """Logits of the last prompt token and of a few steps after it, the prompt's padding masked all the way."""
    spec, program = _program(folder, chunks)
    real = torch.arange(TOKENS)[None] < torch.tensor([[TOKENS], [TOKENS - 3], [TOKENS - 5]])
    padding = real.flip(1) if left else real

    def run(world: World) -> list[Tensor]:
        runner = Runner(world, program, spec, folder, PLAIN)
        caches = runner.new_caches(ROWS, TOKENS + STEPS)
        last = (torch.full((ROWS,), TOKENS) if left else real.sum(1)) - 1 - EARLIER
        earlier = Batch(dec_ids=_ids()[:, :EARLIER], dec_padding=padding[:, :EARLIER])
        runner.forward(earlier, "prefill", caches, torch.zeros(ROWS, dtype=torch.long))
        rest = Batch(dec_ids=_ids()[:, EARLIER:], dec_padding=padding)
        outputs = runner.forward(rest, "prefill", caches, last)
        steps = [collect(world, outputs, [0])]
        for step in range(STEPS):
            seen = torch.cat((padding, torch.ones(ROWS, step + 1, dtype=torch.bool)), dim=1)
            batch = Batch(dec_ids=_ids()[:, step : step + 1], dec_padding=seen)
            outputs = runner.forward(batch, "decode", caches, torch.zeros(ROWS, dtype=torch.long))
            steps.append(collect(world, outputs, [0]))
        return [step["logits"] for step in steps if step]

    return torch.cat(on_ranks(2, run)[0], dim=1)
