"""Rotary and relative positions, beside transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from edgempi.ops.relative import relative_bias
from edgempi.ops.rotary import rotary_table, rotate
from edgempi.plan.spec import Relative, Rotary

ROTARY = Rotary(tuple((10000.0 ** -(torch.arange(0, 8, 2) / 8)).tolist()))


def test_rotary_is_llamas() -> None:
    x = torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(5, 11)[None]
    table = rotary_table(ROTARY, positions, torch.float32)
    cosine, sine = (part[:, :, 0] for part in table)
    expected, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    torch.testing.assert_close(rotate(x, table), expected.transpose(1, 2))


def test_rotary_keeps_lengths_and_sees_distances_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(1))

    def score(at: int, other: int) -> torch.Tensor:
        turned = (rotate(x, rotary_table(ROTARY, torch.tensor([[p]]), torch.float32)) for x, p in ((q, at), (k, other)))
        return torch.linalg.vecdot(*turned)

    torch.testing.assert_close(score(7, 3), score(24, 20))
    assert not torch.allclose(score(7, 3), score(7, 4))
    turned = rotate(q, rotary_table(ROTARY, torch.tensor([[9]]), torch.float32))
    torch.testing.assert_close(turned.norm(), q.norm())


def test_rotary_scale_multiplies() -> None:
    plain = rotary_table(ROTARY, torch.tensor([[3]]), torch.float32)
    scaled = rotary_table(Rotary(ROTARY.frequencies, 1.5), torch.tensor([[3]]), torch.float32)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(1.5 * one, other)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 12)])
def test_relative_buckets_are_t5s(bidirectional: bool, buckets: int, farthest: int) -> None:
    queries, keys = torch.arange(290, 300), torch.arange(600)
    table = torch.arange(float(buckets))[:, None] + torch.tensor([0.0, 1000.0])
    got = relative_bias(Relative(buckets, farthest, bidirectional), table, queries, keys)
    distance = keys[None, :] - queries[:, None]
    bucket = T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
    assert got.shape == (1, 2, 10, 600)
    assert torch.equal(got[0, 0], bucket.float())
    assert torch.equal(got[0, 1], bucket + 1000.0)
