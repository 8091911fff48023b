"""What is due at which step, and when a run ends: pure decisions, the same on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgempi.errors import UserError
from edgempi.finetune.checkpoint.position import Best, Position
from edgempi.plan.training.pac import Continuation

TRAIN, CACHED = "train", "cached"
"""The phases: while the backbone runs, and from the cache. They are called as in `TrainingPlan.program`."""
SMALLER_IS_BETTER = frozenset({"loss", "token_loss", "perplexity"})


@dataclass(frozen=True)
class Extent:
    """How long a run is.

    Attributes:
        batches: mini-batches of an epoch.
        epochs: how many.
        accumulate: mini-batches of an update; the last update of an epoch takes those that are left.
        max_steps: updates after which it ends, whatever the epochs; None: no such bound.

    Raises:
        UserError: one of them is below one.
    """

    batches: int
    epochs: int = 3
    accumulate: int = 1
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for what in ("batches", "epochs", "accumulate", "max_steps"):
            _at_least(1, what, getattr(self, what))

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        updates = self.epochs * math.ceil(self.batches / self.accumulate)
        return updates if self.max_steps is None else min(updates, self.max_steps)

    def group(self, position: Position) -> int:
        """How many mini-batches the next update takes."""
        return min(self.accumulate, self.batches - position.batch)

    def after(self, position: Position) -> Position:
        """Where the run stands after the next update: at the end of an epoch, at the start of the next."""
        batch = position.batch + self.group(position)
        ends = batch >= self.batches
        return replace(
            position, step=position.step + 1, epoch=position.epoch + ends, batch=0 if ends else batch
        )  # fmt: skip

    def epochs_done(self, position: Position) -> float:
        """Epochs done, the part of the running one included."""
        return position.epoch + position.batch / self.batches

    def steps_left(self, position: Position, phases: Phases) -> dict[str, int]:
        """Updates still to come, by phase."""
        found: dict[str, int] = {}
        left, epoch, batch = self.steps - position.step, position.epoch, position.batch
        while left > 0:
            here = min(left, math.ceil((self.batches - batch) / self.accumulate))
            name = phases.of(epoch)
            found[name] = found.get(name, 0) + here
            left, epoch, batch = left - here, epoch + 1, 0
        return found


@dataclass(frozen=True)
class Phases:
    """Which phase an epoch belongs to.

    Attributes:
        continuation: what the epochs do that find a cache.
        filling: epochs before the first that reads it; the last of them fills it.
    """

    continuation: Continuation = Continuation.recompute
    filling: int = 1

    def of(self, epoch: int) -> str:
        """`train` or `cached`."""
        return CACHED if epoch >= self.filling and self.continuation is not Continuation.recompute else TRAIN


@dataclass(frozen=True)
class Due:
    """What is to be done after an update."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True)
class Rhythm:
    """How often: every so many updates; 0: after every epoch; None: never.

    Raises:
        UserError: one of them is below zero.
    """

    log_every: int | None = 10
    evaluate_every: int | None = 0
    save_every: int | None = 0

    def __post_init__(self) -> None:
        for what in ("log_every", "evaluate_every", "save_every"):
            _at_least(0, what, getattr(self, what))

    def due(self, position: Position, last: bool) -> Due:
        """What is due at a position that an update has led to; what is done at all is done after the last one.

        An evaluation belongs to a logged step, so that its figures stand beside the loss.
        """
        evaluate = _is_due(self.evaluate_every, position, last)
        return Due(
            log=evaluate or _is_due(self.log_every, position, last),
            evaluate=evaluate,
            save=_is_due(self.save_every, position, last),
        )


@dataclass(frozen=True)
class Goal:
    """Which checkpoint is the best, and when there is no more hope for a better one.

    Attributes:
        metric: a figure of the evaluation.
        patience: evaluations without a gain after which the run stops; None: it goes on.
        gain: by how much the metric must improve to count as a gain.
    """

    metric: str = "loss"
    patience: int | None = None
    gain: float = 0.0

    def __post_init__(self) -> None:
        _at_least(1, "patience", self.patience)
        _at_least(0, "gain", self.gain)

    def judged(self, position: Position, figures: Mapping[str, float]) -> tuple[Position, bool]:
        """The position with its best and its stale evaluations, and whether this is the best so far.

        NaN is no gain, and the best of nothing else.

        Raises:
            UserError: the metric is none of the figures.
        """
        if self.metric not in figures:
            raise UserError(
                "metric of the best checkpoint", value=self.metric, rule=f"it is one of {', '.join(sorted(figures))}",
                remedy="Name one of these",
            )  # fmt: skip
        score, best = figures[self.metric], position.best
        sign = -1 if self.metric in SMALLER_IS_BETTER else 1
        better = not math.isnan(score) and (best is None or sign * (score - best.score) > 0)
        gained = better and (best is None or sign * (score - best.score) > self.gain)
        stale = 0 if gained else position.stale + 1
        return replace(position, best=Best(score, position.step) if better else best, stale=stale), better

    def is_hopeless(self, position: Position) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and position.stale >= self.patience


def left_s(
    steps: Mapping[str, int], measured_s: Mapping[str, float], predicted_s: Mapping[str, float], current: str
) -> float:
    """Seconds still to come.

    A phase that was not seen yet takes what was predicted for it, times how far the current one is off its prediction,
    or without a prediction as long as the current one.

    Args:
        steps: updates still to come, by phase.
        measured_s: seconds of an update in the phases that have run; the current one is among them.
        predicted_s: seconds of an update as planned; may be empty.
        current: the phase that runs.
    """
    here = measured_s[current]
    known = current in predicted_s and predicted_s[current] > 0
    total = 0.0
    for phase, count in steps.items():
        guess = here * predicted_s[phase] / predicted_s[current] if known and phase in predicted_s else here
        total += count * measured_s.get(phase, guess)
    return total


def _is_due(every: int | None, position: Position, last: bool) -> bool:
    if every is None:
        return False
    return last or (position.step % every == 0 if every else position.batch == 0)


def _at_least(least: float, what: str, value: float | None) -> None:
    if value is not None and value < least:
        raise UserError(
            what, value=value, rule=f"it is at least {least:g}", remedy="Correct the finetune settings"
        )  # fmt: skip
