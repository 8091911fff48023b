"""Evaluation: rows shared over the devices, figures over all of them.

What a model says of a row is read in one of these ways:

    classes, scores   from a head of labels
    tokens            each learned token against the likeliest one after the right ones before it (teacher forcing); a
                      row matches exactly where greedy decoding would write just this, since up to its first mistake it
                      has the right tokens before it
    LabelTexts        the same, for labels written as text: a mistake is the class whose text alone begins so
    written           answers that were really written, by whatever decodes

Where an answer names no class or score it counts as wrong, and is counted beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from edgempi.comm import World
from edgempi.errors import UserError
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.order import rows_of_ranks
from edgempi.finetune.data.samples import IGNORED
from edgempi.finetune.data.task import HIDDEN
from edgempi.finetune.metrics import Metric, merged
from edgempi.finetune.picked import Data, Picked
from edgempi.plan.apportion import Span

UNREADABLE = -1
"""What an answer is read as that names no class or score."""

Reading = Callable[[Rows, Tensor], tuple[ArrayLike, ArrayLike]]
"""From rows and what the model says of them (`loss.Loss.outputs`) to predictions and targets, for a metric."""


class Result(Protocol):
    """What a device knows of a mini-batch."""

    @property
    def loss_sum(self) -> float:
        """Of its own rows."""
        ...

    @property
    def outputs(self) -> Sequence[tuple[Span, Tensor]]:
        """Of its own rows, by their places in the mini-batch."""
        ...


class Executor(Protocol):
    """What runs a mini-batch forward over all devices."""

    def evaluate(self, rows: int, rows_of: Callable[[Span], Rows], read: Any = None, keep: Any = None) -> Result:
        """Collective: every rank; each row is in the result of one rank."""
        ...


def evaluate(
    world: World, executor: Executor, data: Data, reading: Reading | None, metric: Callable[[], Metric],
    read: Any = None, keep: Any = None,
) -> dict[str, float]:  # fmt: skip
    """The figures of a metric over all samples, with `loss`, `rows` and `unreadable`.

    Collective: every rank, same arguments; every rank returns the same, whoever had which rows.

    Args:
        world: all ranks.
        executor: of the plan at hand.
        data: the samples.
        reading: how outputs are read; None: they are not, and the metric is given sums of losses and their targets.
        metric: makes a metric that takes what `reading` gives.
        read: of cached activations (see the executor); None: the backbone runs.
        keep: is given what is to be cached (see there).

    Raises:
        UserError: a label is hidden.
    """
    own, loss, targets, unreadable = metric(), 0.0, 0, 0
    for picked in data.picked(by_length(data)):
        found = executor.evaluate(picked.rows, picked.rows_of, read, keep)
        loss += float(found.loss_sum)
        targets += picked.targets
        if reading is None:
            own.update(found.loss_sum, sum(picked.rows_of(rows).targets for rows, _ in found.outputs))
            continue
        for rows, outputs in found.outputs:
            predictions, actual = reading(picked.rows_of(rows), outputs)
            own.update(predictions, actual)
            named = np.asarray(predictions)
            unreadable += int((named == UNREADABLE).sum()) if named.dtype.kind == "i" else 0
    words = world.all_gather_json([own.state().tolist(), loss, unreadable])
    mean = math.fsum(word[1] for word in words) / targets if targets else math.nan
    return {"loss": mean, **_together(metric, data, words)}


def evaluate_written(
    world: World,
    data: Data,
    write: Callable[[Picked], tuple[Span, Sequence[str]]],
    read_answer: Callable[[str], float | str],
    wanted: Sequence[float | str],
    metric: Callable[[], Metric],
) -> dict[str, float]:
    """The figures of a metric over answers that are written, with `rows` and `unreadable`.

    Collective: every rank, same arguments; every rank returns the same.

    Args:
        world: all ranks.
        data: the samples.
        write: gives the rows of a mini-batch that this rank answers for, and their answers; each row is answered for by
            one rank (`own_rows` where devices write by themselves).
        read_answer: from an answer to a class, a score or a text; -1 where it names no class or score.
        wanted: what is right, by the number of the sample.
        metric: makes a metric that takes both.
    """
    own, unreadable = metric(), 0
    for picked in data.picked(by_length(data)):
        rows, answers = write(picked)
        predictions = [read_answer(answer) for answer in answers]
        own.update(predictions, [wanted[number] for number in picked.samples[slice(*rows)]])
        unreadable += sum(prediction == UNREADABLE for prediction in predictions)
    return _together(metric, data, world.all_gather_json([own.state().tolist(), 0.0, unreadable]))


def own_rows(picked: Picked, weights: Sequence[float], rank: int) -> Span:
    """Which rows of a mini-batch a rank answers for, by the ranks' weights; there may be none."""
    return rows_of_ranks(picked.rows, weights)[rank]


def by_length(data: Data) -> np.ndarray:
    """Numbers of samples, long ones first: neighbours need little padding, and what does not fit fails at once."""
    return np.argsort([-sample.tokens for sample in data.samples], kind="stable").astype(np.int64)


def classes(rows: Rows, outputs: Tensor) -> tuple[ArrayLike, ArrayLike]:
    """The likeliest class of each row, from logits (B, V)."""
    return outputs.argmax(dim=1).numpy(), rows.labels.numpy()


def scores(rows: Rows, outputs: Tensor) -> tuple[ArrayLike, ArrayLike]:
    """The score of each row, from (B,).

    Raises:
        UserError: scores are hidden.
    """
    if not rows.labels.is_floating_point():
        raise UserError(
            "scores to judge by", value=HIDDEN, rule="they are known",
            remedy="Score the validation rows: labels of test are hidden",
        )  # fmt: skip
    return outputs.double().numpy(), rows.labels.double().numpy()


def tokens(rows: Rows, outputs: Tensor) -> tuple[ArrayLike, ArrayLike]:
    """Learned tokens of each row as texts of ids, from ids (B, S); rows in which nothing is learned are left out."""
    pairs = [pair for pair in _learned(rows, outputs) if pair[0]]
    said, right = [[" ".join(map(str, pair[side])) for pair in pairs] for side in (0, 1)]
    return said, right


@dataclass(frozen=True)
class LabelTexts:
    """Reads classes from labels that are learned as text.

    Attributes:
        texts: the token ids of each class, what ends them included.
    """

    texts: Sequence[Sequence[int]]

    def __call__(self, rows: Rows, outputs: Tensor) -> tuple[ArrayLike, ArrayLike]:
        """The class of each row, from ids (B, S); -1 where what was said begins no class, or several.

        Raises:
            UserError: a row is none of the classes.
        """
        known = {tuple(text): number for number, text in enumerate(self.texts)}
        predictions, actual = [], []
        for said, right in _learned(rows, outputs):
            if tuple(right) not in known:
                raise UserError(
                    "label to judge by", value=f"token ids {right}", rule="it is the text of a class",
                    remedy="Score the validation rows: labels of test are hidden",
                )  # fmt: skip
            actual.append(known[tuple(right)])
            predictions.append(actual[-1] if said == right else self._class(said, right))
        return np.array(predictions, np.int64), np.array(actual, np.int64)

    def _class(self, said: list[int], right: list[int]) -> int:
        wrong = next(place for place, pair in enumerate(zip(said, right, strict=True)) if pair[0] != pair[1])
        written = [*right[:wrong], said[wrong]]
        begun = [number for number, text in enumerate(self.texts) if list(text[: len(written)]) == written]
        return begun[0] if len(begun) == 1 else UNREADABLE


def _learned(rows: Rows, outputs: Tensor) -> Iterable[tuple[list[int], list[int]]]:
    """Of each row, what was said and what is right where something is learned."""
    # The two may be padded to different widths; nothing is learned in what one of them lacks.
    width = min(outputs.shape[1], rows.labels.shape[1])
    for said, right in zip(outputs[:, :width], rows.labels[:, :width], strict=True):
        learned = said != IGNORED
        yield said[learned].tolist(), right[learned].tolist()


def _together(metric: Callable[[], Metric], data: Data, words: Sequence[Any]) -> dict[str, float]:
    figures = merged(metric(), [np.array(word[0], np.float64) for word in words])
    return {**figures, "rows": len(data.samples), "unreadable": sum(word[2] for word in words)}
