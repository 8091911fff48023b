"""The two places where a block meets communication, one class per way the two can be combined.

A block calls `enter(x, linear)` to bring the tokens in and multiply, and `leave(y, linear)` to multiply and hand the
sums out; what happens there is the mode's. Between them the block sees the tokens `inner`. A seam is bound to one pass:
its rows and tokens are those at hand.

    connective   block    seam           enter             leave                      inner
    replicated   local    Whole          -                 -                          all tokens
    replicated   tensor   AllReduce      -                 all-reduce                 all tokens
    tokens       tensor   GatherScatter  all-gather        reduce-scatter             all tokens
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
from edgempi.ops.linear import Linear
from edgempi.plan.apportion import Span
from edgempi.plan.plan import Connective, Stage


class Whole:
    """Nothing to exchange: the device holds all it needs for its rows.

    Args:
        tokens: how many tokens the pass has.
    """

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

    def pick(self, x_BSD: Tensor, index_B: Tensor) -> Tensor:
        """One token of each row, (B, 1, D); `index_B` counts in the whole sequence."""
        return x_BSD[torch.arange(len(index_B)), index_B][:, None]


class AllReduce(Whole):
    """Split blocks on a replicated stream: Megatron-LM's tensor parallelism."""

    def __init__(self, tokens: int, group: Group, wire: torch.dtype) -> None:
        super().__init__(tokens)
        self._group, self._wire = group, wire

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply, sum over the devices, add the bias once."""
        return _plus(self.sum(linear.partial(y)), linear.bias)

    def sum(self, addend: Tensor) -> Tensor:
        """The sum, on every device."""
        return self._group.all_reduce(addend, self._wire)


class Tokens(Whole):
    """Whole blocks on token shards: sequence parallelism, where only keys and values travel."""

    def __init__(self, counts: Sequence[int], own: Span, group: Group, wire: torch.dtype) -> None:
        super().__init__(sum(counts))
        self.inner = self.outer = own
        self._counts, self._group, self._wire = counts, group, wire

    def gather(self, x: Tensor) -> Tensor:
        """All-gather the token shards."""
        return self._group.all_gather(x, self._counts, self._wire)

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """All-gather keys and values together, one message a step."""
        k, v = self.gather(torch.cat((k_BTE, v_BTE), dim=-1)).chunk(2, dim=-1)
        return k, v

    def pick(self, x_BSD: Tensor, index_B: Tensor) -> Tensor:
        """Each row's token comes from the device that holds it: a sum with zeros from the others."""
        start, stop = self.outer
        mine = (index_B >= start) & (index_B < stop)
        picked = x_BSD.new_zeros(len(index_B), 1, x_BSD.shape[-1])
        picked[mine, 0] = x_BSD[mine.nonzero()[:, 0], index_B[mine] - start]
        return self._group.all_reduce(picked.transpose(0, 1), self._wire).transpose(0, 1)


class GatherScatter(Tokens):
    """Split blocks on token shards: Galaxy's hybrid model parallelism."""

    def __init__(self, counts: Sequence[int], own: Span, group: Group, wire: torch.dtype) -> None:
        super().__init__(counts, own, group, wire)
        self.inner = (0, sum(counts))

    def enter(self, x: Tensor, linear: Linear, activation: str = "none") -> Tensor:
        """All-gather the shards, and multiply by this device's columns."""
        return linear(self.gather(x), activation)

    def leave(self, y: Tensor, linear: Linear) -> Tensor:
        """Multiply by this device's rows, reduce-scatter the partial sums, add the bias to the own shard."""
        return _plus(self.sum(linear.partial(y)), linear.bias)

    def sum(self, addend: Tensor) -> Tensor:
        """The sum's own shard."""
        return self._group.reduce_scatter(addend, self._counts, self._wire)

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """The own heads' keys of all tokens are here already."""
        return k_BTE, v_BTE


def seam(stage: Stage, group: Group, tokens: int, wire: torch.dtype, split: bool) -> Whole:
    """The seam of a block on `stage` in a pass of `tokens` tokens; `split`: whether its weights are shared out."""
    match stage.modes.connective:
        case Connective.tokens:
            all_spans = stage.token_spans(tokens)
            counts = [stop - start for start, stop in all_spans]
            kind = GatherScatter if split else Tokens
            return kind(counts, all_spans[group.rank], group, wire)
        case Connective.replicated if split:
            return AllReduce(tokens, group, wire)
        case _:
            return Whole(tokens)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
