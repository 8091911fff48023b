"""How a run goes: the loop's settings, a phase as one device sees it, and what is called when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from edgempi.finetune.checkpoint.position import Position
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.ledger import Spent
from edgempi.finetune.optim import Optimizing, Updater
from edgempi.finetune.rhythm import Extent, Goal, Phases, Rhythm
from edgempi.plan.apportion import Span


class Result(Protocol):
    """What an executor says of a mini-batch."""

    @property
    def loss_sum(self) -> float:
        """Of this device's own rows; 0 where it has no head."""
        ...


class Executor(Protocol):
    """What runs a mini-batch forward and back over all devices."""

    def step(
        self,
        rows: int,
        rows_of: Callable[[Span], Rows],
        targets: int,
        read: Any = None,
        keep: Any = None,
    ) -> Result:
        """Bring a mini-batch forward and back. Collective: every rank.

        Afterwards the `.grad` of every trained tensor of this device, whatever it was before, is that of the loss
        summed over the mini-batch and divided by `targets` (by anything where there are none).
        """
        ...


@dataclass(frozen=True)
class Phase:
    """A part of the run with a plan of its own, as this device sees it.

    Attributes:
        name: `train` or `cached`.
        executor: of the plan.
        tensors: what this device trains, by name.
        state: what an optimizer kept for them so far (`Updater.state`); not read before the first update, and let go
            once an updater has taken it over.
        order: from an epoch to its samples' numbers in order, the same on every rank.
        fit: from the order in which an epoch was begun to the one in which this phase goes on with it: the same
            mini-batches, each row with a device that can read it.
        begin: called with the numbers of the samples to come, in order, before they are asked for.
        read, keep: handed to the executor (see there).
    """

    name: str
    executor: Executor
    tensors: Mapping[str, Tensor]
    order: Callable[[int], np.ndarray]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    fit: Callable[[np.ndarray], np.ndarray] = lambda numbers: numbers
    begin: Callable[[np.ndarray], None] = lambda numbers: None
    read: Any = None
    keep: Any = None


Enter = Callable[[str, Phase | None, Updater | None], Phase]
"""From a phase's name, and what was before, to the phase: loads, or moves tensors, their state and the cache."""


@dataclass(frozen=True)
class Course:
    """How a run goes.

    Attributes:
        limit_s: after so many seconds it ends with the update at hand, and is saved; None: it may take its time.
        predicted_s: seconds of an update by phase, as planned; for the time left only.
    """

    extent: Extent
    optimizing: Optimizing
    phases: Phases = field(default_factory=Phases)
    rhythm: Rhythm = field(default_factory=Rhythm)
    goal: Goal = field(default_factory=Goal)
    limit_s: float | None = None
    predicted_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Moved:
    """After an update: for whoever shows it.

    Attributes:
        loss: its mean over the update's targets.
        samples_per_s: in this phase so far.
        left_s: seconds until the end, evaluations and the switch apart.
    """

    position: Position
    phase: str
    loss: float
    samples_per_s: float
    left_s: float


@dataclass(frozen=True)
class Calls:
    """What the loop calls, on every rank: `began` before an epoch or the rest of one, the others after an update.

    Attributes:
        began: with the epoch, counted from 0, and all its samples' numbers in order.
        moved: after each one.
        evaluate: gives figures, equal on every rank; None: nothing is evaluated.
        log: a row of figures by name; those of an evaluation begin with `eval_`.
        save: writes a checkpoint, the best so far or not; None: nothing is saved.
        weigh: called before each one, when all its gradients are there.
        stop: whether this rank wants the run to end here (see `stopping`).
    """

    began: Callable[[int, np.ndarray], None] = lambda epoch, order: None
    moved: Callable[[Moved], None] = lambda moved: None
    evaluate: Callable[[Phase], Mapping[str, float]] | None = None
    log: Callable[[Mapping[str, float | str]], None] = lambda row: None
    save: Callable[[Phase, Updater, Position, bool], None] | None = None
    weigh: Callable[[Phase, Updater], None] = lambda phase, updater: None
    stop: Callable[[], bool] = lambda: False


class Ending(StrEnum):
    """Why a run is over."""

    finished = "finished"
    no_gain = "no gain"
    stopped = "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        figures: of the last evaluation.
        spent: by account, over all ranks.
    """

    ending: Ending
    position: Position
    figures: Mapping[str, float]
    spent: Mapping[str, Spent]
    phase: Phase
