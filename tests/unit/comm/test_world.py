"""Control messages, groups, and transfers between layouts."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.comm import Loopback, StuckError, World, lone_world
from edgempi.comm.transport import wait_until
from edgempi.comm.wire import FP32
from edgempi.plan.layout import Layout, Region
from unit.comm.threads import on_ranks
from unit.plan.test_layout import WHOLE, layouts

SIZE = 8


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("text", ["", "ein ß, 日本", "x" * 100_000])
def test_broadcast_text(size: int, text: str) -> None:
    root = size - 1
    got = on_ranks(size, lambda world: world.broadcast_text(text if world.rank == root else None, root))
    assert got == [text] * size


@pytest.mark.parametrize("size", [1, 3])
def test_json_from_all_ranks(size: int) -> None:
    gathered = on_ranks(size, lambda world: world.gather_json({"rank": world.rank}))
    assert gathered == [[{"rank": rank} for rank in range(size)], *[None] * (size - 1)]
    assert (
        on_ranks(size, lambda world: world.all_gather_json([world.rank, None]))
        == [[[rank, None] for rank in range(size)]] * size
    )


def test_groups_keep_the_ranks_order() -> None:
    def run(world: World) -> tuple[int, int, list[float]]:
        group = world.group(world.rank % 2)
        mine = torch.full((1, 1, 1), float(world.rank))
        return group.rank, group.size, group.all_gather(mine, [1] * group.size, FP32).flatten().tolist()

    assert on_ranks(5, run) == [
        (0, 3, [0, 2, 4]), (0, 2, [1, 3]), (1, 3, [0, 2, 4]), (1, 2, [1, 3]), (2, 3, [0, 2, 4]),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(layouts(), layouts(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_transfer(source: Layout, target: Layout, dtype: torch.dtype) -> None:
    whole = torch.arange(float(torch.Size(WHOLE.shape).numel())).view(WHOLE.shape)

    def run(world: World) -> torch.Tensor | None:
        own = whole[source[world.rank].within(WHOLE)] if world.rank in source else None
        got, sends = world.transfer(own, source, target, dtype)
        sends.wait()
        return got

    for rank, got in enumerate(on_ranks(SIZE, run)):
        if rank not in target:
            assert got is None
            continue
        assert got is not None and got.dtype == dtype
        assert torch.equal(got, whole[target[rank].within(WHOLE)].to(dtype))


def test_a_transfer_counts_what_leaves_for_its_unit() -> None:
    half, rest = Region((0, 1), (0, 3), (0, 2)), Region((0, 1), (3, 4), (0, 2))
    whole = Region((0, 1), (0, 4), (0, 2))

    def run(world: World) -> dict[str, int]:
        with world.traffic.within("to dec.2"):
            mine = {0: half, 1: rest}
            _, sends = world.transfer(torch.ones(mine[world.rank].shape), mine, {0: whole}, torch.bfloat16)
            sends.wait()
        return dict(world.traffic.bytes_sent)

    assert on_ranks(2, run) == [{}, {"to dec.2": 4}]


def test_consecutive_transfers_do_not_mix() -> None:
    box = Region((0, 1), (0, 1), (0, 1))

    def run(world: World) -> list[float]:
        pending, got = [], []
        for turn in range(5):
            own = torch.full((1, 1, 1), float(turn)) if world.rank == 0 else None
            result, sends = world.transfer(own, {0: box}, {1: box}, torch.float32)
            pending.append(sends)
            got += [] if result is None else [result.item()]
        for sends in pending:
            sends.wait()
        return got

    assert on_ranks(2, run) == [[], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (lambda world: world.broadcast_text(None, root=1), "rank 0 on .* waits in control message from rank 1, 0 s"),
        (
            lambda world: world.transfer(None, {1: WHOLE}, {0: WHOLE}, torch.float32),
            "waits in receive of head from rank 1, 0 s; see cluster.timeout_s",
        ),
        (
            lambda world: world.transfer(torch.ones(WHOLE.shape), {0: WHOLE}, {1: WHOLE}, torch.float32)[1].wait(),
            "waits in send of head to rank 1, 0 s",
        ),
    ],
)
def test_a_rank_that_never_answers(deed, said: str) -> None:
    def run(world: World) -> None:
        if world.rank == 0:
            with world.traffic.within("head"), pytest.raises(StuckError, match=said):
                deed(world)

    on_ranks(2, run, timeout_s=0.3)


def test_stuck_ranks_tell_who_is_silent() -> None:
    silent = on_ranks(4, lambda world: [] if world.rank == 2 else world.silent(0.3))
    assert silent == [[2], [2], [], [2]]
    assert on_ranks(2, lambda world: world.silent(5.0)) == [[], []]
    assert lone_world().silent(5.0) == []


def test_a_wait_sleeps_and_is_bounded() -> None:
    start = time.thread_time()
    with pytest.raises(StuckError, match=r"after 0\.3"):
        wait_until(lambda: False, 0.3, lambda s: f"after {s:.1f}")
    assert time.thread_time() - start < 0.15


def test_a_lone_world() -> None:
    world = lone_world()
    assert (world.rank, world.size) == (0, 1)
    assert world.all_gather_json(3) == [3]
    with pytest.raises(RuntimeError, match="a lone rank cannot send"):
        Loopback().isend(torch.ones(1), 1, 0)


def test_patience_reaches_groups_that_are_there_already() -> None:
    def run(world: World) -> tuple[str, float]:
        group = world.group(0)
        world.timeout_s = 0.05
        start = time.perf_counter()
        with world.patience(6), pytest.raises(StuckError):
            group.post.wait(lambda: False, "what never comes", [1 - world.rank])
        return world.host, time.perf_counter() - start

    assert all(0.3 <= waited_s < 5 for _, waited_s in on_ranks(2, run))
