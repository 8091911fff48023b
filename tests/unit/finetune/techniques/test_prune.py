"""The side network starts with the largest parts of the backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.finetune.network import Pass
from edgempi.finetune.techniques.columns import Mixed
from edgempi.finetune.techniques.prune import first_layers, fixed_mixture
from edgempi.finetune.techniques.sources import Source
from edgempi.models.checkpoint import Checkpoint
from edgempi.plan.share import inventory
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.training.technique import Technique, Tuning
from unit.finetune.tuned import NAMES, loss, made, rows, trunk

READS = ("attention.q", "attention.k", "attention.v", "mlp.up")
HALF = Tuning(Technique.parallel_adapter, reduction=2)


def _weights(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """All of the model's weights, in double precision."""
    with Checkpoint(folder) as checkpoint:
        plain = Source(checkpoint).weights(spec, spec.units, torch.float64)
        names = [parameter.name for unit in spec.units for parameter in inventory(spec, unit)]
        return {name: plain.needed(name) for name in names}


@pytest.mark.parametrize("name", [*NAMES, "t5-gated", "bart-uneven", "llama-one-head"])
def test_at_full_width_a_block_is_the_backbone_s(name: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    found = trunk(tmp_path, spec, "parallel_adapter", tuning=Tuning(Technique.parallel_adapter, reduction=1))
    side = found._side
    assert side is not None
    batch = rows(spec).batch
    with torch.no_grad():
        main = Pass(found._network, batch, {})
        for unit in spec.units[:-1]:
            below = dict(main.state)
            expected = main.run(unit)
            if unit in side.network.units:  # fed with the backbone's own stream
                beside = Pass(side.network, batch, below).run(unit)
                assert (beside - expected).abs().max() <= 1e-12 * expected.abs().max()
            if unit.endswith(".embed"):
                assert torch.equal(side.enter(unit, None, expected), expected)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_rows_that_matter_most_are_kept(name: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    stack = spec.enc
    assert stack is not None
    whole, learnt = _weights(tmp_path, spec), trunk(tmp_path, spec, "parallel_adapter", tuning=HALF).trained.state()
    first = "enc.0"
    reads = sum(whole[f"{first}.{part}.weight"].square().sum(0) for part in ("attention.q", "attention.k"))
    reads = (
        reads + whole[f"{first}.attention.v.weight"].square().sum(0) + whole[f"{first}.mlp.up.weight"].square().sum(0)
    )
    writes = sum(whole[f"{first}.{part}.weight"].square().sum(1) for part in ("attention.out", "mlp.down"))
    columns = sorted((reads + writes).topk(stack.width // 2).indices.tolist())
    for layer in range(stack.layers):
        unit = f"enc.{layer}"
        start = learnt[f"side.{unit}.down.weight"]
        assert start.sum() == len(columns)
        assert start.nonzero()[:, 1].tolist() == columns
        up, down = whole[f"{unit}.mlp.up.weight"][:, columns], whole[f"{unit}.mlp.down.weight"]
        best = sorted((up.square().sum(1) * down.square().sum(0)).topk(stack.mlp_columns // 2).indices.tolist())
        assert torch.equal(learnt[f"side.{unit}.mlp.up.weight"], up[best])
        assert torch.equal(learnt[f"side.{unit}.mlp.down.weight"], down[columns][:, best])
        assert torch.equal(learnt[f"side.{unit}.mlp.norm.weight"], whole[f"{unit}.mlp.norm.weight"][columns])
        q, k = (whole[f"{unit}.attention.{part}.weight"][:, columns] for part in "qk")
        size, kept = stack.head_dim, []
        for head in range(stack.heads):
            span = slice(head * size, (head + 1) * size)
            score = q[span].square().sum(1) * k[span].square().sum(1)
            kept += [head * size + row for row in sorted(score.topk(size // 2).indices.tolist())]
        assert torch.equal(learnt[f"side.{unit}.attention.q.weight"], q[kept])
        assert torch.equal(learnt[f"side.{unit}.attention.k.weight"], k[kept])


def test_rotary_pairs_are_those_of_the_spec(tmp_path: Path) -> None:
    _, spec = made("qwen3", tmp_path)
    stack = spec.dec
    assert stack is not None and stack.rotary is not None
    whole, learnt = _weights(tmp_path, spec), trunk(tmp_path, spec, "parallel_adapter", tuning=HALF).trained.state()
    columns = learnt["side.dec.1.down.weight"].nonzero()[:, 1]
    kept = torch.tensor([0, 2, 4, 6, 8, 10])  # of twelve rows, every second of six pairs
    rows = (torch.arange(stack.heads)[:, None] * stack.head_dim + kept).flatten()
    assert torch.equal(learnt["side.dec.1.attention.q.weight"], whole["dec.1.attention.q.weight"][rows][:, columns])
    assert torch.equal(learnt["side.dec.1.attention.q_norm.weight"], whole["dec.1.attention.q_norm.weight"][kept])


def test_a_low_rank_downsampler_takes_the_largest_columns(tmp_path: Path) -> None:
    _, spec = made("bert", tmp_path)
    dense = trunk(tmp_path, spec, "parallel_adapter", tuning=HALF).trained.state()["side.enc.1.down.weight"]
    low = trunk(
        tmp_path, spec, "parallel_adapter", tuning=Tuning(Technique.parallel_adapter, reduction=2, down_rank=3)
    ).trained.state()
    made_of = low["side.enc.1.down.b"] @ low["side.enc.1.down.a"]
    assert made_of.sum() == 3
    assert torch.equal(made_of * dense, made_of)


def test_a_fixed_downsampler_may_be_taken_before_caching(tmp_path: Path) -> None:
    _, spec = made("t5", tmp_path)
    tuning, given = Tuning(Technique.parallel_adapter, reduction=2, down_rank=0), rows(spec)
    found = trunk(tmp_path, spec, "parallel_adapter", tuning=tuning, seed=1)
    assert not [name for name in found.trained.shapes if ".down" in name and ".mlp." not in name]
    kept: dict[str, Tensor] = {}
    expected = loss(found, given, kept=kept).total
    mixture = fixed_mixture(40, 2).double()
    projected = {unit: x if unit == "head" else x @ mixture for unit, x in kept.items()}
    assert loss(found, given, read=projected.__getitem__).total.item() == expected.item()


def test_what_a_stage_reads_beside_its_own(tmp_path: Path) -> None:
    _, spec = made("t5", tmp_path)
    assert first_layers(spec, ("enc.embed", "enc.0")) == ()
    assert first_layers(spec, ("enc.1", "enc.norm")) == ("enc.0",)
    assert first_layers(spec, ("dec.1", "dec.2")) == ("enc.0", "dec.0")
    assert first_layers(spec, ("dec.norm", "head")) == ("dec.0",)
    assert all(is_layer(unit) for unit in first_layers(spec, spec.units[-1:]))


def test_keys_of_the_encoder_are_cut_as_its_stream_is(tmp_path: Path) -> None:
    _, spec = made("t5", tmp_path)
    whole, learnt = _weights(tmp_path, spec), trunk(tmp_path, spec, "parallel_adapter", tuning=HALF).trained.state()
    columns = {stack: learnt[f"side.{stack}.1.down.weight"].nonzero()[:, 1] for stack in ("enc", "dec")}
    assert not torch.equal(columns["enc"], columns["dec"])
    for part, stack in (("q", "dec"), ("k", "enc"), ("v", "enc")):
        rows = {tuple(row) for row in whole[f"dec.1.cross.{part}.weight"][:, columns[stack]].tolist()}
        assert {tuple(row) for row in learnt[f"side.dec.1.cross.{part}.weight"].tolist()} < rows


def test_mixtures_read_and_write_what_lies_in_them() -> None:
    matrix, random = fixed_mixture(24, 3).double(), torch.Generator().manual_seed(0)
    mixed = Mixed(matrix)
    weight = torch.randn(5, 24, dtype=torch.float64, generator=random)
    x = torch.randn(7, 8, dtype=torch.float64, generator=random) @ matrix.t()
    torch.testing.assert_close(x @ matrix @ mixed.read(weight).t(), x @ weight.t(), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.write(weight.t()), (weight @ matrix).t())
    assert torch.equal(fixed_mixture(24, 1), torch.eye(24))
