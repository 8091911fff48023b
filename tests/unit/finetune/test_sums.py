"""Sums under way: right for any sizes, alike on all ranks, several at a time, and never without end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgempi.comm import StuckError, World
from edgempi.finetune.sums import RingSum
from unit.comm.threads import on_ranks


def _addend(rank: int, number: int, elements: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + number)
    return torch.randn(elements, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("elements", [1, 3, 17])
def test_sums_of_any_size_in_any_order(size: int, elements: int) -> None:
    def run(world: World) -> tuple[list[Tensor], int]:
        post = world.group(0).post
        flats = [_addend(world.rank, number, elements + number) for number in range(3)]
        begun: dict[int, RingSum] = {}
        # Each rank begins them in another order.
        for number in torch.randperm(3, generator=torch.Generator().manual_seed(world.rank)).tolist():
            begun[number] = RingSum(post, flats[number], number, "sums")
            begun[number].poll()

        def drive() -> None:
            for other in begun.values():
                other.poll()

        for number in range(3):
            begun[number].finish(drive)
            assert begun[number].complete
        post.drain()
        return flats, world.traffic.bytes_sent["sums"]

    found = on_ranks(size, run)
    for number in range(3):
        expected = sum(_addend(rank, number, elements + number) for rank in range(size))
        for flats, _ in found:
            torch.testing.assert_close(flats[number], expected, rtol=1e-14, atol=1e-14)
            assert torch.equal(flats[number], found[0][0][number])
    assert sum(sent for _, sent in found) == 2 * (size - 1) * 8 * sum(elements + number for number in range(3))


def test_the_order_of_additions_is_fixed() -> None:
    """Piece c is summed from rank c + 1 on: with addends that cancel, another order gives another result."""
    addends = [1e16, 1.0, -1e16]

    def run(world: World) -> Tensor:
        flat = torch.full((3,), addends[world.rank], dtype=torch.float64)
        ring = RingSum(world.group(0).post, flat, 0, "sums")
        ring.finish(lambda: None)
        return flat

    expected = [(addends[(c + 1) % 3] + addends[(c + 2) % 3]) + addends[c] for c in range(3)]
    assert len(set(expected)) > 1
    assert [flat.tolist() for flat in on_ranks(3, run)] == [expected] * 3


def test_a_rank_that_does_not_come_is_named() -> None:
    def run(world: World) -> str:
        post = world.group(0).post
        if world.rank == 0:
            return ""
        with pytest.raises(StuckError) as stuck:
            RingSum(post, torch.ones(4), 0, "sum of b").finish(lambda: None)
        return str(stuck.value)

    _, said = on_ranks(2, run, timeout_s=0.3)
    assert "waits for rank 0 in all-reduce of sum of b" in said
