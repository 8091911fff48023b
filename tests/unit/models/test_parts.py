"""The residual stream tile by tile: lazily, in order, in runs of what is here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgempi.models.parts import Parts
from edgempi.ops.linear import Poll, nothing

SIZES = (3, 2, 2)
WHOLE = torch.arange(2 * sum(SIZES) * 4, dtype=torch.float32).view(2, sum(SIZES), 4)
TILES = WHOLE.split(SIZES, dim=1)


class Arriving:
    """Tiles that are taken when they are asked for; `here` says how many have arrived."""

    def __init__(self, here: int = 0) -> None:
        self.arrived = here
        self.taken: list[int] = []
        self.driven = 0
        self.parts = Parts(
            [self._take(i) for i in range(len(TILES))], 2, 4, torch.float32, lambda i: i < self.arrived, self._drive
        )

    def _take(self, index: int) -> Callable[[Poll], Tensor]:
        def take(poll: Poll) -> Tensor:
            self.taken.append(index)
            return TILES[index]

        return take

    def _drive(self) -> None:
        self.driven += 1


def test_nothing_is_taken_before_it_is_asked_for() -> None:
    source = Arriving()
    changed = source.parts.map(lambda x: x + 1).plus(source.parts.map_runs(lambda x, poll: 2 * x))
    assert not source.taken
    assert torch.equal(changed.tile(0), 3 * TILES[0] + 1)
    assert source.taken == [0]
    assert torch.equal(changed.whole(), 3 * WHOLE + 1)
    assert source.taken == [0, 1, 2]


def test_runs_hold_what_is_here_when_they_start() -> None:
    for here, expected in ((0, [3, 2, 2]), (2, [5, 2]), (3, [7])):
        source = Arriving(here)
        runs: list[int] = []

        def change(x: Tensor, poll: Poll, runs: list[int] = runs) -> Tensor:
            runs.append(x.shape[1])
            return -x

        changed = source.parts.map_runs(change)
        assert torch.equal(changed.tile(0), -TILES[0])
        assert len(runs) == 1, "later tiles wait for their turn"
        assert torch.equal(changed.whole(), -WHOLE)
        assert runs == expected


def test_a_run_drives_what_still_comes_and_who_waits_for_it() -> None:
    source, polled = Arriving(1), []

    def change(x: Tensor, poll: Poll) -> Tensor:
        poll()
        return x

    source.parts.map_runs(change).map(lambda x: x).tile(0, lambda: polled.append(1))
    assert (source.driven, len(polled)) == (1, 1)


def test_what_is_here_shows_through_changes() -> None:
    source = Arriving(2)
    changed = Parts.of(WHOLE).plus(source.parts.map(lambda x: x).map_runs(lambda x, poll: x))
    assert [changed.here(i) for i in range(3)] == [True, True, False]
    assert torch.equal(changed.whole(), 2 * WHOLE)


def test_a_known_tensor_is_sliced_for_an_addend_in_tiles() -> None:
    total = Parts.of(WHOLE).plus(Arriving().parts)
    assert [total.tile(i, nothing).shape[1] for i in range(3)] == list(SIZES)
    assert torch.equal(total.whole(), 2 * WHOLE)
