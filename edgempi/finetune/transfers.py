"""What crosses the borders between pipeline stages in training: states forward, gradients back, row by row.

A message of a schedule (`plan/training/actions.py`) carries some rows of everything that the later stage needs, one
tensor after another, each as the wire makes it and as long as the longest of just these rows: both sides know that
from the samples, and rows are padded to the receiver's length when they are put together. Padding is on the right and
masked, so what stands there is nobody's input and its gradient is zero.

    full, lora, adapter   the backbone's states forward, their gradients back
    parallel_adapter      the backbone's and the side network's states forward, the side gradients back (PAC, arXiv
                          2408.10746); from the cache only the side network's, both ways

Shapes: B rows, S tokens, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.comm.post import Post
from edgempi.comm.wire import Wire
from edgempi.parallel.batch import Batch
from edgempi.plan.apportion import Span, length
from edgempi.plan.flow import Shape, carried
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.actions import Cargo, Receive, Send
from edgempi.plan.training.technique import Tuning, side_spec

State = dict[str, Tensor]
"""What crosses a border, by name: streams by stack, `memory` (the encoder's output), and `side.` with each of them."""

SIDE = "side."
TAGS = {Cargo.activation: 20, Cargo.gradient: 21}
"""Message tags. Messages of one kind between two devices are received in the order in which they are sent."""


@dataclass(frozen=True)
class Border:
    """Where one stage ends and the next begins.

    Attributes:
        spec: the model.
        tuning: the technique.
        unit: the first of the later stage.
    """

    spec: ModelSpec
    tuning: Tuning
    unit: str

    def shapes(self, batch: Batch, cargo: Cargo, cached: bool) -> dict[str, Shape]:
        """What crosses for these rows, in order.

        Args:
            batch: of just the rows.
            cargo: which way.
            cached: whether the backbone's activations come from the cache, and do not cross.
        """
        found: dict[str, Shape] = {}
        for name in carried(self.spec, self.unit, False):
            stack = "enc" if name == "memory" else name
            found[name] = (batch.rows, batch.ids(stack).shape[1], self.spec.stacks[stack].width)
        if self.tuning.crosses_backbone:
            return found
        narrow = self.tuning.reduction
        side_spec(self.spec, narrow)  # refuses what does not divide
        beside = {SIDE + name: (rows, tokens, columns // narrow) for name, (rows, tokens, columns) in found.items()}
        return beside if cached or cargo is Cargo.gradient else found | beside

    def returns(self, name: str) -> bool:
        """Whether a gradient comes back for a state."""
        return self.tuning.crosses_backbone or name.startswith(SIDE)


class Incoming:
    """A message on its way here.

    Args:
        post: of all ranks.
        wire: the form that tensors travel in.
        action: what the schedule says of it.
        shapes: of its tensors, in the sender's order.
    """

    def __init__(self, post: Post, wire: Wire, action: Receive, shapes: Mapping[str, Shape]) -> None:
        self.action = action
        self._post, self._wire, self._shapes = post, wire, shapes
        with post.traffic.within(action.cargo):
            self._arrivals = [
                post.receive(wire.buffer(shape), action.peer, TAGS[action.cargo]) for shape in shapes.values()
            ]
        self._waiting = list(self._arrivals)

    def here(self) -> bool:
        """Drive communication; whether all of it has arrived."""
        for index in sorted(self._post.arrived(self._waiting), reverse=True):
            del self._waiting[index]
        return not self._waiting

    def tensors(self) -> State:
        """What it brought, (B, S, D) each."""
        pairs = zip(self._shapes.items(), self._arrivals, strict=True)
        return {name: self._wire.decode(arrival.buffer, shape) for (name, shape), arrival in pairs}


def send(post: Post, wire: Wire, action: Send, state: State, rows: Span, shapes: Mapping[str, Shape]) -> None:
    """Start to send a message; does not wait.

    Args:
        post: of all ranks.
        wire: the form that tensors travel in.
        action: what the schedule says of it.
        state: of this device's `rows`; must not be written to until the post's sends are gone.
        rows: those, counted in the mini-batch.
        shapes: of what is sent.
    """
    start = action.rows[0] - rows[0]
    for name, (count, tokens, _) in shapes.items():
        part_BSD = state[name].detach()[start : start + count, :tokens]
        post.send(wire.encode(part_BSD), action.peer, TAGS[action.cargo], action.cargo)


def together(messages: Sequence[Incoming], rows: Span, shapes: Mapping[str, Shape]) -> State:
    """The tensors of a device's rows, of messages that each brought some of them; zeros where nothing came.

    Args:
        messages: all here.
        rows: of the device, counted in the mini-batch.
        shapes: of the result.
    """
    parts = [(message.action.rows, message.tensors()) for message in messages]
    found: State = {}
    for name, shape in shapes.items():
        first = parts[0][1][name]
        if first.shape == shape:
            found[name] = first
            continue
        found[name] = whole_BSD = torch.zeros(shape, dtype=first.dtype)
        for span, tensors in parts:
            start = span[0] - rows[0]
            whole_BSD[start : start + length(span), : tensors[name].shape[1]] = tensors[name]
    return found
