"""The forward is differentiable: gradients of a device alone are transformers' gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.comm import lone_world
from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.inference.runner import load_units
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.ends import Embed
from edgempi.models.families import family_named
from edgempi.models.source import read_spec
from edgempi.models.stream import Stream
from edgempi.models.weights import Weights
from edgempi.ops.linear import PLAIN
from edgempi.parallel.batch import Batch
from edgempi.parallel.executor import Executor
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.share import device_share
from models.zoo import FAMILIES, build, inputs

ROWS, TOKENS = 3, 7
MODELS = {model.name: model for model in FAMILIES}


class Given(Embed):
    """An embedding unit that gives a tensor, so that gradients have somewhere to arrive."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def __call__(self, stream: Stream) -> Tensor:
        return self._x


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])  # whose first stream is the token table's rows alone
def test_gradients_of_the_first_stream(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    made = build(model, tmp_path)
    found = inputs(model, ROWS, TOKENS, padded=True)
    ids, padding = found["input_ids"], found["attention_mask"]
    target = torch.randn(ROWS, TOKENS, 61, generator=torch.Generator().manual_seed(2)) * padding[..., None]
    start = made.get_input_embeddings()(ids).detach()

    theirs = start.clone().requires_grad_()
    (made(inputs_embeds=theirs, attention_mask=padding).logits * target).sum().backward()

    ours = start.clone().requires_grad_()
    executor = _executor(tmp_path, Given(ours))
    (outputs,) = executor.forward(Batch(dec_ids=ids, dec_padding=padding.bool()))
    logits = outputs["logits"].tensor
    assert logits is not None
    (logits * target).sum().backward()

    assert ours.grad is not None and theirs.grad is not None
    assert theirs.grad.abs().max() > 0.1
    assert (ours.grad - theirs.grad).abs().max() <= 2e-5 * theirs.grad.abs().max()


def _executor(folder: Path, first: Embed) -> Executor:
    """A device alone with the model's units, built where autograd may see them."""
    spec = read_spec(folder)
    parallel = ParallelConfig(modes=[Sharing.single])
    plan = plan_program(spec, [1.0], parallel, PlannerConfig(), Forms()).prefill
    with Checkpoint(folder) as checkpoint:
        share = device_share(plan, spec, 0)
        weights = Weights(checkpoint, family_named(spec.family), spec, share, PLAIN, torch.float32)
        units = {**load_units(weights, spec.units), "dec.embed": first}
    world = lone_world()
    return Executor(world, world.group(0), plan, spec, units, {})
