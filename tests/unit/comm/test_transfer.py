"""Transfers that are begun early, and driven while their ranks do something else."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.transfer import Mail
from edgempi.comm.wire import BF16, FP32, INT8, Wire
from edgempi.plan.layout import Region
from unit.comm.threads import on_ranks

BOX = Region((0, 2), (0, 3), (0, 4))


@pytest.mark.parametrize("wire", [FP32, BF16, INT8], ids=lambda wire: wire.name)
def test_receives_posted_ahead_arrive_in_order(wire: Wire) -> None:
    sent = [torch.full(BOX.shape, float(turn)) for turn in range(4)]

    def run(world: World) -> list[Tensor]:
        mail = Mail()
        if world.rank == 0:
            for x in sent:
                mail.add(world.begin_transfer({0: BOX}, {1: BOX}, wire).send(x))
            mail.drain()
            return []
        begun = [world.begin_transfer({0: BOX}, {1: BOX}, wire) for _ in sent]
        for transfer in begun:
            mail.add(transfer.receives)
        return [got for transfer in begun if (got := transfer.receive()) is not None]

    for got, x in zip(on_ranks(2, run)[1], sent, strict=True):
        assert torch.equal(got.float(), wire.decode(wire.encode(x), x.shape).float())


def test_polling_alone_completes_a_message() -> None:
    """A message comes in while its receiver only polls, and is then there without a wait."""

    def run(world: World) -> float:
        with world.traffic.within("to dec.2"):
            begun = world.begin_transfer({0: BOX}, {1: BOX}, FP32)
        mail = Mail()
        mail.add(begun.send(torch.ones(BOX.shape) if world.rank == 0 else None))
        mail.add(begun.receives)
        until = time.monotonic() + 5
        while not (begun.receives.poll() or time.monotonic() > until):
            mail.poll()
            time.sleep(0.001)
        got = begun.receive()
        mail.drain()
        assert (got is None) == (world.rank == 0)
        return world.traffic.waited_s["to dec.2"]

    assert on_ranks(2, run)[1] == 0.0


def test_a_wait_counts_for_the_unit_it_was_begun_for() -> None:
    def run(world: World) -> set[str]:
        with world.traffic.within("to dec.2"):
            begun = world.begin_transfer({0: BOX}, {1: BOX}, FP32)
            sends = begun.send(torch.ones(BOX.shape) if world.rank == 0 else None)
        with world.traffic.within("dec.0"):
            begun.receive()
            sends.wait()
        return set(world.traffic.waited_s) | {unit for unit, count in world.traffic.messages.items() if count}

    assert on_ranks(2, run) == [{"to dec.2"}, {"to dec.2"}]
