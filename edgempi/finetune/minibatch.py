"""One device's way through one mini-batch, turn by turn.

It waits for the states or gradients that a pass needs, whose receives were posted turns ahead, computes, and hands on
what others need without waiting. Whatever is under way is driven between turns and from the gradients' hooks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from edgempi.comm.post import Post
from edgempi.comm.trace import COMPUTE
from edgempi.comm.wire import Wire
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.gradients import Gradients, Trained
from edgempi.finetune.transfers import SIDE, Border, Incoming, State, send, together
from edgempi.finetune.turns import Turn
from edgempi.plan.apportion import Span
from edgempi.plan.flow import Shape
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.actions import Backward, Cargo, Forward, Receive, Send
from edgempi.plan.training.technique import Tuning

AHEAD = 2
"""For how many turns to come receives are posted: a message that finds none does not flow."""

RowsOf = Callable[[Span], Rows]
"""The rows at some places of the mini-batch, padded on the right at least to the longest of them."""
Reader = Callable[[str], Tensor]
"""A unit's cached activations (B, S, D) of the rows at hand."""
ReaderOf = Callable[[Rows], Reader]
Keep = Callable[[Rows, dict[str, Tensor]], None]
"""Takes the activations to be cached, by unit, of the rows of one forward pass."""


class Trunk(Protocol):
    """One device's units with what is trained beside them."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    @property
    def tuning(self) -> Tuning:
        """The technique."""

    @property
    def trained(self) -> Trained:
        """The trained tensors."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's states."""

    @property
    def learning_dtype(self) -> torch.dtype:
        """Of the side network's states."""

    def forward(
        self, rows: Rows, given: State, read: Reader | None = None, kept: dict[str, Tensor] | None = None
    ) -> Any:
        """The state for the next stage, or from the head the loss: `total`, a scalar sum, and `outputs`, detached."""


@dataclass(frozen=True)
class StepResult:
    """One device's part of a mini-batch.

    Attributes:
        loss_sum: of its rows, where it has the head; 0 elsewhere.
        outputs: of its rows, by their places in the mini-batch, where it has the head.
        forward_s: that it computed forward.
        backward_s: that it computed backward, driving communication in between.
        waited_s: that it stood still.
        step_s: from begin to end.
    """

    loss_sum: float
    outputs: tuple[tuple[Span, Tensor], ...]
    forward_s: float
    backward_s: float
    waited_s: float
    step_s: float


@dataclass(frozen=True)
class Seat:
    """Where a device stands: its units, what borders on them, and how it talks to others.

    Attributes:
        trunk: its units.
        before: the border to the stage before; None where there is none.
        after: the border to the stage after.
        post: of all ranks.
        wire: the form in which states and their gradients travel.
        gradients: of its trained tensors.
    """

    trunk: Trunk
    before: Border | None
    after: Border | None
    post: Post
    wire: Wire
    gradients: Gradients

    def poll(self) -> None:
        """Drive all that is under way."""
        self.post.let_go()
        self.gradients.poll()

    def shapes(self, action: Send | Receive, rows: Rows, cached: bool) -> dict[str, Shape]:
        """Of the tensors of a message with these rows."""
        ahead = isinstance(action, Send) == (action.cargo is Cargo.activation)
        border = self.after if ahead else self.before
        assert border is not None
        return border.shapes(rows.batch, action.cargo, cached)


@dataclass
class _Pass:
    """A microbatch whose forward pass is done: the leaves that it began with, and what it ended with.

    Of states only those that gradients flow through.
    """

    given: State
    out: Any


class MiniBatch:
    """One mini-batch on its way through a device.

    Args:
        seat: of the device.
        rows_of: see `RowsOf`; also asked for rows of other devices.
        read: where activations are cached: gives them for the rows of a pass.
        keep: is given what is to be cached.
        scale: what the summed loss is multiplied by; None: there is no backward pass.
    """

    def __init__(
        self, seat: Seat, rows_of: RowsOf, read: ReaderOf | None, keep: Keep | None, scale: float | None
    ) -> None:
        self._seat, self._rows_of, self._read, self._keep, self._scale = seat, rows_of, read, keep, scale
        self._collated: dict[Span, Rows] = {}
        self._passes: dict[int, _Pass] = {}
        self._loss_sum = 0.0
        self._outputs: list[tuple[Span, Tensor]] = []
        self._seconds: dict[type[Forward] | type[Backward], float] = {Forward: 0.0, Backward: 0.0}

    def through(self, todo: Sequence[Turn]) -> StepResult:
        """Run the turns, and wait until all sums are there and all messages are gone."""
        seat, traffic = self._seat, self._seat.post.traffic
        start, waited = time.perf_counter(), sum(traffic.waited_s.values())
        last = max((turn.microbatch for turn in todo if turn.kind is Backward), default=None)
        coming = deque(map(self._expect, todo[:AHEAD]))
        for number, turn in enumerate(todo):
            now = coming.popleft()
            coming.extend(map(self._expect, todo[number + AHEAD : number + AHEAD + 1]))
            self._wait(now)
            if turn.kind is not None:
                began = time.perf_counter()
                with traffic.trace.span(COMPUTE, f"{turn.kind.__name__.lower()} {turn.microbatch}"):
                    if turn.kind is Forward:
                        self._forward(turn, now)
                    else:
                        self._backward(turn, now, turn.microbatch == last)
                self._seconds[turn.kind] += time.perf_counter() - began
            for bucket in turn.reduces:
                seat.gradients.begin(bucket)
            seat.poll()
        if self._scale is not None:
            seat.gradients.finish()
        self._drain([action.peer for turn in todo for action in turn.sends])
        stop = time.perf_counter()
        return StepResult(
            self._loss_sum, tuple(self._outputs), self._seconds[Forward], self._seconds[Backward],
            sum(traffic.waited_s.values()) - waited, stop - start,
        )  # fmt: skip

    def _forward(self, turn: Turn, messages: Sequence[Incoming]) -> None:
        rows, given = self._rows(turn.rows), self._given(turn, messages)
        kept: dict[str, Tensor] | None = None if self._keep is None else {}
        out = self._seat.trunk.forward(rows, given, None if self._read is None else self._read(rows), kept)
        if self._keep is not None and kept:
            self._keep(rows, kept)
        if isinstance(out, dict):
            self._send(turn, out)
            out = _learning(out)
        else:
            self._loss_sum += float(out.total.detach())
            self._outputs.append((turn.rows, out.outputs))
        if self._scale is not None:
            self._passes[turn.microbatch] = _Pass(_learning(given), out)

    def _given(self, turn: Turn, messages: Sequence[Incoming]) -> State:
        """The states of the own rows as leaves, which require grad where one goes back."""
        border = self._seat.before
        if border is None:
            return {}
        shapes = border.shapes(self._rows(turn.rows).batch, Cargo.activation, self._read is not None)
        given, trunk = together(messages, turn.rows, shapes), self._seat.trunk
        for name, state_BSD in given.items():
            learns = self._scale is not None and border.returns(name)
            state = state_BSD.to(trunk.learning_dtype if name.startswith(SIDE) else trunk.dtype)
            given[name] = state.requires_grad_(learns)
        return given

    def _backward(self, turn: Turn, messages: Sequence[Incoming], last: bool) -> None:
        done = self._passes.pop(turn.microbatch)
        if last:
            self._seat.gradients.last()
        roots, gradients = self._roots(turn, done.out, messages)
        if roots:
            torch.autograd.backward(roots, gradients)
        leaves = done.given.items()
        self._send(turn, {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves})

    def _roots(self, turn: Turn, out: Any, messages: Sequence[Incoming]) -> tuple[list[Tensor], list[Tensor]]:
        """What a backward pass begins with, and the gradients of that."""
        if not isinstance(out, dict):
            assert self._scale is not None
            return ([out.total], [torch.full_like(out.total, self._scale)]) if out.total.requires_grad else ([], [])
        border = self._seat.after
        if border is None or not messages:
            return [], []
        shapes = border.shapes(self._rows(turn.rows).batch, Cargo.gradient, self._read is not None)
        found = together(messages, turn.rows, shapes)
        roots = {name: out[name] for name in found if name in out}
        return list(roots.values()), [found[name].to(root.dtype) for name, root in roots.items()]

    def _rows(self, span: Span) -> Rows:
        if span not in self._collated:
            self._collated[span] = self._rows_of(span)
        return self._collated[span]

    def _shapes(self, action: Send | Receive) -> dict[str, Shape]:
        return self._seat.shapes(action, self._rows(action.rows), self._read is not None)

    def _send(self, turn: Turn, state: State) -> None:
        for action in turn.sends:
            send(self._seat.post, self._seat.wire, action, state, turn.rows, self._shapes(action))

    def _expect(self, turn: Turn) -> list[Incoming]:
        """Post the receives of a turn."""
        post, wire = self._seat.post, self._seat.wire
        return [Incoming(post, wire, action, self._shapes(action)) for action in turn.receives]

    def _wait(self, messages: Sequence[Incoming]) -> None:
        waiting = list(messages)

        def here() -> bool:
            self._seat.poll()
            waiting[:] = [message for message in waiting if not message.here()]
            return not waiting

        if messages and not here():
            action = messages[0].action
            with self._seat.post.traffic.within(action.cargo):
                peers = [message.action.peer for message in messages]
                self._seat.post.wait(here, f"receive of microbatch {action.microbatch}", peers)

    def _drain(self, peers: Sequence[int]) -> None:
        def gone() -> bool:
            self._seat.post.let_go()
            return self._seat.post.idle

        if not gone():
            self._seat.post.wait(gone, "the end of its sends", peers)


def _learning(state: State) -> State:
    return {name: x_BSD for name, x_BSD in state.items() if x_BSD.requires_grad}
