"""The two places where a block meets communication, one class per way the two can be combined.

A block calls `enter(x, linear)` to bring the tokens in and multiply, and `leave(y, linear)` to multiply and hand the
sums out; what happens there is the mode's. Between them the block sees the tokens `inner`. A seam is bound to one pass:
its rows and tokens are those at hand.

    connective   block    seam           enter             leave                      inner
    replicated   local    Whole          -                 -                          all tokens
    replicated   tensor   AllReduce      -                 all-reduce                 all tokens
    tokens       tensor   GatherScatter  all-gather        reduce-scatter             all tokens
                          Overlapped     the same, under the products (`overlap.py`)
    tokens       local    Tokens         -                 -  (keys all-gathered)     own tokens
    rows         local    Whole          -                 -                          all tokens of own rows

Biases of split linears are added once, after the sum, by whoever holds the sum.
Source: Galaxy (arXiv 2405.17245), hybrid model parallelism; Megatron-LM (arXiv 1909.08053) for AllReduce.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgempi.comm import Group
from edgempi.comm.trace import COMPUTE
from edgempi.comm.wire import Wire
from edgempi.models.parts import Parts
from edgempi.models.stream import Core, Inside, Project, Reach
from edgempi.ops.linear import Linear, Poll, nothing
from edgempi.plan.apportion import Span


class Whole:
    """Nothing to exchange: the device holds all it needs for its rows.

    Args:
        tokens: how many tokens the pass has.
    """

    shares_keys = False
    """Whether keys and values are exchanged after the projection."""

    def __init__(self, tokens: int) -> None:
        self.inner: Span = (0, tokens)
        self.outer: Span = (0, tokens)

    def enter(self, x: Tensor, linear: Linear, activation: str = "none") -> Tensor:
        """Bring in all tokens that the block's inside works on, and multiply."""
        return linear(x, activation)

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply, and hand each device its part of the summed stream."""
        return linear(y)

    def sum(self, addend: Tensor) -> Tensor:
        """Turn the devices' addends into this device's part of the stream."""
        return addend

    def gather(self, x: Tensor) -> Tensor:
        """All tokens of the stream."""
        return x

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that this device's queries attend to."""
        return k_BTE, v_BTE

    def attend(self, x: Parts, project: Project, reach: Reach, core: Core, out: Linear) -> Parts:
        """Self-attention from the device's part of the stream to its part of the sum.

        Args:
            x: the device's part of the stream, (B, own S, D).
            project: works out queries, keys and values of a span's tokens.
            reach: up to which token a span's queries look.
            core: attends from a span's queries, once all that they look at is projected.
            out: the exiting product.
        """
        project(self.gather_inner(x.whole()), self.inner, nothing)
        return Parts.of(self.leave(core(self.inner), out))

    def through(self, x: Parts, inside: Inside, out: Linear) -> Parts:
        """An MLP from the device's part of the stream to its part of the sum; `out` is the exiting product."""
        return Parts.of(self.leave(inside(self.gather_inner(x.whole()), nothing), out))

    def gather_inner(self, x: Tensor) -> Tensor:
        """The tokens that the block's inside works on."""
        return x

    def pick(self, x_BSD: Tensor, index_B: Tensor) -> Tensor:
        """One token of each row, (B, 1, D); `index_B` counts in the whole sequence."""
        return x_BSD[torch.arange(len(index_B)), index_B][:, None]


class AllReduce(Whole):
    """Split blocks on a replicated stream: Megatron-LM's tensor parallelism."""

    def __init__(self, tokens: int, group: Group, wire: Wire) -> None:
        super().__init__(tokens)
        self._group, self._wire = group, wire

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply, sum over the devices, add the bias once."""
        return plus(self.sum(linear.partial(y)), linear.bias)

    def sum(self, addend: Tensor) -> Tensor:
        """The sum, on every device."""
        return self._group.all_reduce(addend, self._wire)


class Tokens(Whole):
    """Whole blocks on token shards: sequence parallelism, where only keys and values travel."""

    shares_keys = True

    def __init__(self, counts: Sequence[int], own: Span, group: Group, wire: Wire) -> None:
        super().__init__(sum(counts))
        self.inner = self.outer = own
        self._counts, self._group, self._wire = counts, group, wire

    def gather(self, x: Tensor) -> Tensor:
        """All-gather the token shards."""
        return self._group.all_gather(x, self._counts, self._wire)

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """All-gather keys and values together, one message a step."""
        # As rows, not as columns: keys are often far larger than values, and must not set the steps of their int8.
        k, v = self.gather(torch.cat((k_BTE, v_BTE), dim=0)).chunk(2, dim=0)
        return k, v

    def through(self, x: Parts, inside: Inside, out: Linear) -> Parts:
        """The own tokens through a whole MLP: the first tiles, and on to who waits for them, while others still come.

        Tiles that are here already go together: each product reads its weights anew.
        """
        trace = self._group.trace

        def work(tokens: Tensor, poll: Poll) -> Tensor:
            with trace.span(COMPUTE, "mlp own"):
                return out(inside(tokens, poll), between=poll)

        return x.map_runs(work)

    def pick(self, x_BSD: Tensor, index_B: Tensor) -> Tensor:
        """Each row's token comes from the device that holds it: a sum with zeros from the others."""
        start, stop = self.outer
        mine = (index_B >= start) & (index_B < stop)
        picked = x_BSD.new_zeros(len(index_B), 1, x_BSD.shape[-1])
        picked[mine, 0] = x_BSD[mine.nonzero()[:, 0], index_B[mine] - start]
        return self._group.all_reduce(picked.transpose(0, 1), self._wire).transpose(0, 1)


class GatherScatter(Tokens):
    """Split blocks on token shards: Galaxy's hybrid model parallelism, communication after computation."""

    shares_keys = False

    def __init__(self, counts: Sequence[int], own: Span, group: Group, wire: Wire) -> None:
        super().__init__(counts, own, group, wire)
        self.inner = (0, sum(counts))

    def enter(self, x: Tensor, linear: Linear, activation: str = "none") -> Tensor:
        """All-gather the shards, and multiply by this device's columns."""
        return linear(self.gather(x), activation)

    def gather_inner(self, x: Tensor) -> Tensor:
        """All tokens, from the shards."""
        return self.gather(x)

    def through(self, x: Parts, inside: Inside, out: Linear) -> Parts:
        """All tokens through the own columns."""
        return Whole.through(self, x, inside, out)

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply by this device's rows, reduce-scatter the partial sums, add the bias to the own shard."""
        return plus(self.sum(linear.partial(y)), linear.bias)

    def sum(self, addend: Tensor) -> Tensor:
        """The sum's own shard."""
        return self._group.reduce_scatter(addend, self._counts, self._wire)

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """The own heads' keys of all tokens are here already."""
        return k_BTE, v_BTE


def plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
