"""Ring collectives give the plain sums and stacks, for any tiles, and the same bits everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgempi.comm import Group, StuckError, World, lone_world
from edgempi.comm.wire import BF16, FP32, Wire
from edgempi.plan.apportion import apportion, spans
from unit.comm.threads import on_ranks

B, D = 2, 3
SIZES = (1, 2, 3, 5)


@st.composite
def tiles(draw: st.DrawFn) -> list[int]:
    """Tokens of each device: unequal, and some zero."""
    size = draw(st.sampled_from(SIZES))
    return draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))


def _addends(size: int, tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Whole numbers below 2^8, which no order of summing and no wire dtype changes."""
    generator = torch.Generator().manual_seed(size * 31 + tokens)
    return [torch.randint(-20, 20, (B, tokens, D), generator=generator).to(dtype) for _ in range(size)]


@settings(max_examples=30, deadline=None)
@given(tiles(), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([FP32, BF16]))
def test_all_gather(counts: list[int], dtype: torch.dtype, wire: Wire) -> None:
    (whole,) = _addends(1, sum(counts), dtype)
    cuts = spans(counts)

    def gather(world: World) -> Tensor:
        start, stop = cuts[world.rank]
        return world.group(0).all_gather(whole[:, start:stop], counts, wire)

    for got in on_ranks(len(counts), gather):
        assert got.dtype == dtype
        assert torch.equal(got, whole)


@settings(max_examples=30, deadline=None)
@given(tiles(), st.sampled_from([FP32, BF16]))
def test_reduce_scatter(counts: list[int], wire: Wire) -> None:
    addends = _addends(len(counts), sum(counts))
    total = torch.stack(addends).sum(0)
    shards = on_ranks(len(counts), lambda world: world.group(0).reduce_scatter(addends[world.rank], counts, wire))
    for shard, (start, stop) in zip(shards, spans(counts), strict=True):
        assert torch.equal(shard, total[:, start:stop])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 7])
@pytest.mark.parametrize("wire", [FP32, BF16])
def test_all_reduce(size: int, tokens: int, wire: Wire) -> None:
    addends = [addend + 0.1 for addend in _addends(size, tokens)]
    first, *others = on_ranks(size, lambda world: world.group(0).all_reduce(addends[world.rank], wire))
    expected = torch.stack(addends).sum(0)
    assert torch.allclose(first, expected, rtol=0, atol=1e-5 if wire == FP32 or size == 1 else 1.0)
    for other in others:
        assert torch.equal(other, first)


def test_sums_are_taken_in_fp32() -> None:
    """Two hundred and fifty-six and then ones: bf16 would lose every one of them."""
    addends = [torch.full((1, 3, 1), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    sums = on_ranks(3, lambda world: world.group(0).reduce_scatter(addends[world.rank], [1, 1, 1], FP32))
    assert [one.item() for one in sums] == [258.0] * 3


@settings(max_examples=30, deadline=None)
@given(tiles())
def test_bytes_sent(counts: list[int]) -> None:
    size, tokens = len(counts), sum(counts)

    def count(world: World) -> tuple[int, int, int]:
        group, found = world.group(0), []
        start, stop = spans(counts)[world.rank]
        x = torch.zeros(B, tokens, D)
        for run in (
            lambda: group.all_gather(x[:, start:stop], counts, FP32),
            lambda: group.reduce_scatter(x, counts, BF16),
            lambda: group.all_reduce(x, FP32),
        ):
            world.traffic.reset()
            run()
            found.append(sum(world.traffic.bytes_sent.values()))
        return tuple(found)

    equal = apportion(tokens, [1] * size)
    for rank, sent in enumerate(on_ranks(size, count)):
        after = (rank + 1) % size
        if size == 1:
            assert sent == (0, 0, 0)
            continue
        reduced = (tokens - equal[rank]) + (tokens - equal[after])
        assert sent == (
            B * D * 4 * (tokens - counts[after]),
            B * D * 2 * (tokens - counts[rank]),
            B * D * 4 * reduced,
        )


def test_a_group_alone_sends_nothing() -> None:
    group: Group = lone_world().group(0)
    x = torch.arange(6.0).view(1, 3, 2)
    assert group.all_gather(x, [3], BF16) is x
    assert group.reduce_scatter(x, [3], BF16) is x


def test_a_neighbour_that_never_answers() -> None:
    def run(world: World) -> str:
        group = world.group(0)
        if world.rank == 1:
            return ""
        with world.traffic.within("enc.4"), pytest.raises(StuckError) as caught:
            group.all_gather(torch.ones(1, 1, 1), [1, 1, 1], FP32)
        return str(caught.value)

    said = on_ranks(3, run, timeout_s=0.4)
    assert "rank 0 on" in said[0] and "waits for rank 2 in all-gather" in said[0]
    assert "all-gather of enc.4, 0 s" in said[0]
