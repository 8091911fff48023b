"""The training loop: epochs of updates in phases, with logging, evaluation and saving in between.

What is due when, and when it ends, is decided in `rhythm`; the gradients of a mini-batch are the executor's, the update
is `optim`'s. All that is left here is their order, which is the same on every rank: at each update ranks exchange one
control message with their losses, their part of the gradient norm and whether they want to stop, and so agree.

A run that goes on from a position takes the same samples with the same state, hence has the same losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from edgempi.comm import World
from edgempi.errors import UserError
from edgempi.finetune.checkpoint.position import Position
from edgempi.finetune.course import Calls, Course, Ending, Enter, Moved, Outcome, Phase
from edgempi.finetune.ledger import Ledger
from edgempi.finetune.optim import Updater, counted, global_norm
from edgempi.finetune.picked import Data, Picked
from edgempi.finetune.rhythm import left_s

SETUP, SWITCH, EVALUATE, SAVE = "setup", "switch", "evaluate", "save"
"""Accounts beside the phases."""
NAMED = 16
"""So many samples are named where a loss is not finite."""


def train(
    world: World, data: Data, course: Course, enter: Enter, calls: Calls, position: Position,
    begun: np.ndarray | None = None,
) -> Outcome:  # fmt: skip
    """Train from a position to the end. Collective: every rank, same arguments but for what `enter` gives.

    Args:
        world: all ranks.
        data: the samples.
        course: how the run goes.
        enter: makes the phases.
        calls: what is called in between.
        position: where to go on; its `order` is read within an epoch only.
        begun: the order in which the epoch was begun within which the run goes on: its phase might now make another,
            since cached samples stay with their devices, and these may be others. Used only if it is the position's.

    Raises:
        UserError: a loss or the gradients are not finite, or the data is not that of the position.
    """
    run = _Run(world, data, course, enter, calls, position, begun)
    ending = Ending.finished if position.step >= course.extent.steps else None
    while ending is None:
        ending = run.epoch()
    return Outcome(ending, run.position, run.figures, run.ledger.together(), run.phase)


class _Run:
    def __init__(
        self, world: World, data: Data, course: Course, enter: Enter, calls: Calls, position: Position,
        begun: np.ndarray | None,
    ) -> None:  # fmt: skip
        self.world, self.data, self.course, self.enter, self.calls = world, data, course, enter, calls
        self.position, self.begun = position, begun
        self.ledger = Ledger(world, SETUP)
        self.figures: Mapping[str, float] = {}
        self._ends = math.inf if course.limit_s is None else time.monotonic() + course.limit_s
        self._logged_s, self._logged_samples = 0.0, 0
        self.phase = self._enter(None)
        self.updater = self._updater()

    def epoch(self) -> Ending | None:
        """Train until the epoch is done, or the run is over."""
        if self._name() != self.phase.name:
            with self.ledger.within(SWITCH):
                self.phase = self._enter(self.phase)
                del self.updater  # what it kept is the new phase's
                self.updater = self._updater()
        self.ledger.turn(self.phase.name)
        number, skip = self.position.epoch, self.position.batch
        order = self._order(number, skip)
        self.calls.began(number, order)
        self.phase.begin(order[skip * self.data.size :])
        batches = self.data.picked(order, skip)
        while self.position.epoch == number:
            ending = self._after(*self._update(list(islice(batches, self.course.extent.group(self.position)))))
            if ending is not None:
                return ending
        return None

    def _order(self, number: int, skip: int) -> np.ndarray:
        """The order of an epoch, of which `skip` mini-batches are done; the position knows it from now on."""
        made = self.phase.order(number)
        if not skip:
            return self._known(made)
        for order in (made, self.begun):
            if order is not None and self.data.fingerprint(order) == self.position.order:
                return self._known(self.phase.fit(order))
        raise UserError(
            f"samples of epoch {number + 1}", value=self.data.fingerprint(made),
            rule=f"the run began it with the samples and the order of {self.position.order}",
            remedy="Resume with the same data, template, batch size and seed",
        )  # fmt: skip

    def _known(self, order: np.ndarray) -> np.ndarray:
        self.position = replace(self.position, order=self.data.fingerprint(order), phase=self.phase.name)
        return order

    def _name(self) -> str:
        return self.course.phases.of(min(self.position.epoch, self.course.extent.epochs - 1))

    def _enter(self, before: Phase | None) -> Phase:
        return self.enter(self._name(), before, None if before is None else self.updater)

    def _updater(self) -> Updater:
        held = self.world.all_gather_json({name: tensor.numel() for name, tensor in self.phase.tensors.items()})
        updater = Updater(self.phase.tensors, self.course.optimizing, counted(held)[self.world.rank])
        if self.position.step:
            updater.load(self.phase.state, self.position.step)
        # It is the updater's now; nobody is to keep a second one.
        self.phase = replace(self.phase, state={})
        return updater

    def _update(self, group: Sequence[Picked]) -> tuple[dict[str, float], bool]:
        """Do one update; figures of it, and whether any rank wants to stop."""
        phase, updater, extent, before = self.phase, self.updater, self.course.extent, self.position
        targets = sum(picked.targets for picked in group)
        own = []
        for place, picked in enumerate(group):
            found = phase.executor.step(picked.rows, picked.rows_of, targets, phase.read, phase.keep)
            own.append(float(found.loss_sum))
            if place + 1 < len(group):
                updater.set_aside()
        updater.bring_back()
        self.calls.weigh(phase, updater)
        wants = self.calls.stop() or time.monotonic() > self._ends
        words = self.world.all_gather_json([own, updater.squares(), wants])
        losses = [math.fsum(word[0][place] for word in words) for place in range(len(group))]
        norm = global_norm(word[1] for word in words)
        _check_finite(before, group, losses, norm)
        rate = self.course.optimizing.rate_at(before.step, extent.steps)
        updater.update(rate, norm)
        samples, loss = sum(picked.rows for picked in group), math.fsum(losses)
        self.ledger.trained(1, samples)
        self.position = replace(
            extent.after(before), loss_sum=before.loss_sum + loss, targets=before.targets + targets
        )  # fmt: skip
        steps = extent.steps_left(self.position, self.course.phases)
        left = left_s(steps, self.ledger.update_s(), self.course.predicted_s, phase.name)
        speed = self.ledger.own.samples / max(self.ledger.own.seconds, 1e-9)
        self.calls.moved(Moved(self.position, phase.name, loss / max(1, targets), speed, left))
        return {"learning_rate": rate, "grad_norm": norm}, any(word[2] for word in words)

    def _after(self, row: Mapping[str, float], wants: bool) -> Ending | None:
        """Do what is due after an update."""
        rhythm, goal = self.course.rhythm, self.course.goal
        last = self.position.step >= self.course.extent.steps
        ending = Ending.finished if last else Ending.stopped if wants else None
        due = rhythm.due(self.position, last)
        best, figures = False, {}
        if due.evaluate and self.calls.evaluate is not None:
            with self.ledger.within(EVALUATE):
                figures = dict(self.calls.evaluate(self.phase))
            self.figures = figures
            self.position, best = goal.judged(self.position, figures)
            if ending is None and goal.is_hopeless(self.position):
                ending = Ending.no_gain
        if due.log or ending is not None:
            self._log(row, figures)
        saves = due.save or best or (ending is not None and rhythm.save_every is not None)
        if saves and self.calls.save is not None:
            with self.ledger.within(SAVE):
                self.calls.save(self.phase, self.updater, self.position, best)
        return ending

    def _log(self, row: Mapping[str, float], figures: Mapping[str, float]) -> None:
        """Give a row out, and begin the next."""
        position = self.position
        spent = [self.ledger.spent[name] for name in self.ledger.update_s()]
        seconds, samples = sum(one.seconds for one in spent), sum(one.samples for one in spent)
        passed = seconds - self._logged_s
        self.calls.log(
            {
                "step": position.step,
                "epoch": self.course.extent.epochs_done(position),
                "phase": self.phase.name,
                "loss": position.loss_sum / max(1, position.targets),
                **row,
                "samples_per_s": (samples - self._logged_samples) / passed if passed else math.nan,
                "train_s": seconds,
                **{f"eval_{name}": value for name, value in figures.items()},
            }
        )
        self._logged_s, self._logged_samples = seconds, samples
        self.position = replace(position, loss_sum=0.0, targets=0)


def _check_finite(position: Position, group: Sequence[Picked], losses: Sequence[float], norm: float) -> None:
    """Refuse to update with what is not finite; every rank sees the same.

    Raises:
        UserError: a loss or the norm of the gradients is not finite; it names the step and the samples.
    """
    bad = [picked for picked, loss in zip(group, losses, strict=True) if not math.isfinite(loss)]
    if not bad and math.isfinite(norm):
        return
    numbers = [int(number) for picked in bad or group for number in picked.samples]
    named = ", ".join(map(str, numbers[:NAMED])) + (f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else "")
    place = f"step {position.step + 1}, epoch {position.epoch + 1}, samples {named} (counted from 0)"
    raise UserError(
        "loss" if bad else "gradient norm", value=f"{math.fsum(losses) if bad else norm} at {place}",
        rule="it is a finite number",
        remedy="Lower the learning rate, warm up longer, clip gradients; where it happens at once, look at these rows",
    )  # fmt: skip
