"""The hybrid seam with communication under computation: tiles of rows travel while others are multiplied.

A device starts with its own tokens, whose products fill the time in which the first tiles of the others arrive, works
on the others' tiles in the order in which the ring wants their partial sums, and ends with its own, whose products fill
the time in which the last partial sums arrive. An MLP has no dependence between rows, so a tile goes through all of it
in one go; attention must have projected the tokens that a tile's queries look at: all of them, or, where it is causal,
those up to the tile's end. While a product runs, communication is polled between its blocks of weight columns.

Source: Galaxy (arXiv 2405.17245), tile-based overlap of all-gather with the entering and of reduce-scatter with the
exiting product; whole MLPs per tile and early causal queries go beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgempi.comm import Group
from edgempi.comm.group import Gather, Scatter
from edgempi.comm.trace import COMPUTE
from edgempi.comm.wire import Wire
from edgempi.models.parts import Parts, Take
from edgempi.models.stream import Core, Inside, Project, Reach
from edgempi.ops.linear import Linear, Poll, nothing
from edgempi.parallel.seams import GatherScatter, plus
from edgempi.plan.apportion import Span
from edgempi.plan.tiles import Tile, cut


class Overlapped(GatherScatter):
    """All-gather under the entering product, reduce-scatter under the exiting one.

    Args:
        counts: tokens of each device.
        own: this device's tokens.
        group: the stage's ranks.
        wire: the form in which tiles travel.
        overlap: `ring` or `icollective`.
        subtiles: into how many tiles a device's tokens are cut.
    """

    def __init__(self, counts: Sequence[int], own: Span, group: Group, wire: Wire, overlap: str, subtiles: int) -> None:
        super().__init__(counts, own, group, wire)
        self._tiles = cut(counts, subtiles)
        self._own = self._tiles[group.rank]
        self._overlap = overlap

    def enter(self, x: Tensor, linear: Linear, activation: str = "none") -> Tensor:
        """Multiply tile by tile, as they arrive."""
        gather = self._gather(Parts.of(x))
        y = x.new_empty(x.shape[0], self.inner[1], linear.outputs)
        y[:, slice(*self.outer)] = linear(x, activation, gather.poll)
        for tile in gather.order:
            y[:, slice(*tile.span)] = linear(gather.tile(tile, nothing), activation, gather.poll)
        return y

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply tile by tile, in the order in which the sums are wanted."""
        scatter = self._scatter(y.shape[0], linear)
        for tile in scatter.order:
            scatter.give(tile, linear.partial(y[:, slice(*tile.span)], scatter.poll))
        return self._end(scatter, y[:, slice(*self.outer)], linear).whole()

    def attend(self, x: Parts, project: Project, reach: Reach, core: Core, out: Linear) -> Parts:
        """Project tiles as they arrive, and attend from a tile as soon as all that its queries look at is here."""
        trace = self._group.trace
        gather = self._gather(x)
        scatter = self._scatter(x.rows, out)
        poll = _both(gather, scatter)
        with trace.span(COMPUTE, "qkv own"):
            project(x.whole(), self.outer, poll)
        coming = list(gather.order)

        def take_in(needed: int) -> None:
            while coming and any(tile.span[0] < needed for tile in coming):
                run = _run(gather, next(tile for tile in coming if tile.span[0] < needed), coming)
                arrived = _joined(gather, run, scatter.poll)
                with trace.span(COMPUTE, f"qkv of {run[0].owner}"):
                    project(arrived, (run[0].span[0], run[-1].span[1]), poll)

        for tile in scatter.order:
            take_in(reach(tile.span))
            with trace.span(COMPUTE, f"attention and out of {tile.owner}"):
                addend = out.partial(core(tile.span), poll)
            scatter.give(tile, addend)
        take_in(self.inner[1])
        return self._end(scatter, core(self.outer), out)

    def through(self, x: Parts, inside: Inside, out: Linear) -> Parts:
        """Take each tile through the whole MLP in one go."""
        trace = self._group.trace
        gather = self._gather(x)
        scatter = self._scatter(x.rows, out)
        poll = _both(gather, scatter)
        with trace.span(COMPUTE, "up own"):
            own = inside(x.whole(), poll)
        coming = list(scatter.order)
        while coming:
            run = _run(gather, coming[0], coming)
            arrived = _joined(gather, run, scatter.poll)
            with trace.span(COMPUTE, f"mlp of {run[0].owner}"):
                addend = out.partial(inside(arrived, poll), poll)
            first = run[0].span[0]
            for tile in run:
                scatter.give(tile, addend[:, tile.span[0] - first : tile.span[1] - first])
        return self._end(scatter, own, out)

    def _end(self, scatter: Scatter, own: Tensor, out: Linear) -> Parts:
        """Multiply the own tokens last, under the last partial sums; what comes out is awaited by whoever needs it."""
        with self._group.trace.span(COMPUTE, "exit own"):
            addend = out.partial(own, scatter.poll)
        first = self.outer[0]
        for tile in self._own:
            scatter.give(tile, addend[:, tile.span[0] - first : tile.span[1] - first])

        def awaited(tile: Tile) -> Take:
            def take(poll: Poll) -> Tensor:
                total = scatter.sum(tile, poll).to(own.dtype)
                if tile == self._own[-1]:
                    scatter.finish(poll)
                return plus(total, out.bias)

            return take

        def passed_on(poll: Poll) -> Tensor:  # a device without tokens
            scatter.finish(poll)
            return addend

        if not self._own:
            return Parts([passed_on], own.shape[0], out.outputs, own.dtype)
        takes = [awaited(tile) for tile in self._own]
        return Parts(
            takes, own.shape[0], out.outputs, own.dtype, lambda index: scatter.here(self._own[index]), scatter.poll
        )

    def _gather(self, x: Parts) -> Gather:
        """Start to gather, and send the own tokens as they become known."""
        gather = self._group.gather((x.rows, x.width), x.dtype, self._tiles, self._wire, self._overlap)
        if len(x) == len(self._own):
            for index, tile in enumerate(self._own):
                gather.offer(tile, x.tile(index, gather.poll))
        else:
            for index in range(len(x)):
                x.tile(index, gather.poll)
            whole, start = x.whole(), self.outer[0]
            for tile in self._own:
                gather.offer(tile, whole[:, tile.span[0] - start : tile.span[1] - start])
        return gather

    def _scatter(self, rows: int, out: Linear) -> Scatter:
        return self._group.scatter((rows, out.outputs), self._tiles, self._wire, self._overlap)


def _run(gather: Gather, first: Tile, coming: list[Tile]) -> list[Tile]:
    """Take `first` out of what is coming, with those tiles after it that are its neighbours and here already.

    Tiles that need not be waited for are multiplied together: each product reads its weights anew.
    """
    run = [first]
    coming.remove(first)
    for tile in list(coming):
        if tile.owner == first.owner and tile.span[0] == run[-1].span[1] and gather.here(first) and gather.here(tile):
            run.append(tile)
            coming.remove(tile)
    return run


def _joined(gather: Gather, run: Sequence[Tile], meanwhile: Poll) -> Tensor:
    arrived = [gather.tile(tile, meanwhile) for tile in run]
    return arrived[0] if len(arrived) == 1 else torch.cat(arrived, dim=1)


def _both(gather: Gather, scatter: Scatter) -> Poll:
    def poll() -> None:
        gather.poll()
        scatter.poll()

    return poll
