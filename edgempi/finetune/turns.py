"""A device's list of actions as turns: what must be here, what is computed, and what leaves then.

The parts of one microbatch's backward pass (`plan/training/actions.py`) are one turn, since automatic differentiation
takes them in one go: sums begin inside it, as gradients become complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgempi.plan.apportion import Span
from edgempi.plan.training.actions import Action, Backward, Cargo, Forward, Receive, Reduce, Send
from edgempi.plan.training.buckets import Bucket


@dataclass
class Turn:
    """One pass of one microbatch through this device's layers; none, where only sums are to begin.

    Attributes:
        receives: what it needs.
        kind: `Forward` or `Backward`.
        microbatch: its number.
        rows: that are this device's, counted in the mini-batch.
        reduces: sums that begin with it or after it.
        sends: what it hands on.
    """

    receives: list[Receive] = field(default_factory=list)
    kind: type[Forward] | type[Backward] | None = None
    microbatch: int = -1
    rows: Span = (0, 0)
    reduces: list[Bucket] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)


def turns(actions: Sequence[Action]) -> tuple[Turn, ...]:
    """The turns of a device, in order."""
    found = [Turn()]
    for action in actions:
        if isinstance(action, Receive):
            if found[-1].kind is not None:
                found.append(Turn())
            found[-1].receives.append(action)
        elif isinstance(action, Forward | Backward):
            if found[-1].kind not in (None, type(action)) or found[-1].microbatch not in (-1, action.microbatch):
                found.append(Turn())
            found[-1].kind, found[-1].microbatch, found[-1].rows = type(action), action.microbatch, action.rows
        elif isinstance(action, Reduce):
            found[-1].reduces.append(action.bucket)
        elif isinstance(action, Send):
            found[-1].sends.append(action)
    return tuple(found)


def only_forward(actions: Sequence[Action]) -> tuple[Action, ...]:
    """What of a device's list an evaluation needs: the forward passes, with what crosses the borders for them."""
    return tuple(
        action
        for action in actions
        if isinstance(action, Forward) or (isinstance(action, Send | Receive) and action.cargo is Cargo.activation)
    )
