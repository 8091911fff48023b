"""How good answers are: accuracy, F1, Pearson, Spearman, exact match, token loss.

A metric takes rows on each rank (`update`), gives what it knows as one array of float64 (`state`), and takes those of
other ranks (`merge`); the result does not depend on who had which rows. Where nothing can be said (no rows, no
variance) it is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from edgempi.errors import UserError


class Metric(Protocol):
    """Sums over rows that ranks can exchange."""

    def update(self, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Count rows; the two are of equal length, on every rank those of its own rows."""
        ...

    def state(self) -> np.ndarray:
        """What is known, as a flat array of float64; its length may differ from rank to rank."""
        ...

    def merge(self, state: np.ndarray) -> None:
        """Add what another rank knows."""
        ...

    def result(self) -> dict[str, float]:
        """The figures by name, as fractions (not percent)."""
        ...


class Confusion:
    """Counts of classes as predicted and as they are: accuracy, and for two classes F1 of class 1.

    A prediction that is no class (-1: an answer that names none) is wrong, and speaks for no class.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = np.zeros((classes, classes + 1))

    def update(self, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Count rows of class numbers.

        Raises:
            UserError: a target is no class of the task (hidden labels are -1).
        """
        predicted, actual = _pair(predictions, targets, np.int64)
        if len(actual) and not (actual.min() >= 0 and actual.max() < self.classes):
            raise UserError(
                "labels to score against", value=sorted(set(actual.tolist()))[:5],
                rule=f"they are 0 to {self.classes - 1}", remedy="Score the validation rows: labels of test are hidden",
            )  # fmt: skip
        known = (predicted >= 0) & (predicted < self.classes)
        np.add.at(self.counts, (actual, np.where(known, predicted, self.classes)), 1)

    def state(self) -> np.ndarray:
        """The counts."""
        return self.counts.ravel().copy()

    def merge(self, state: np.ndarray) -> None:
        """Add the counts of another rank."""
        self.counts += state.reshape(self.counts.shape)

    def result(self) -> dict[str, float]:
        """`accuracy`; for two classes also `f1`, which is 0 where no row is rightly found to be of class 1."""
        rows = self.counts.sum()
        found = {"accuracy": float(np.trace(self.counts) / rows) if rows else math.nan}
        if self.classes == 2:
            right = self.counts[1, 1]
            either = self.counts[:, 1].sum() + self.counts[1].sum()
            found["f1"] = (float(2 * right / either) if either else 0.0) if rows else math.nan
        return found


class Correlation:
    """All pairs of prediction and target: Pearson, and Spearman with ties at their mean rank."""

    def __init__(self) -> None:
        self.pairs: list[np.ndarray] = []

    def update(self, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Keep rows of scores."""
        self.pairs.append(np.stack(_pair(predictions, targets, np.float64), axis=1))

    def state(self) -> np.ndarray:
        """The pairs, one after the other."""
        return np.concatenate([np.zeros((0, 2)), *self.pairs]).ravel()

    def merge(self, state: np.ndarray) -> None:
        """Add the pairs of another rank."""
        self.pairs.append(state.reshape(-1, 2).copy())

    def result(self) -> dict[str, float]:
        """`pearson` and `spearman`; NaN for fewer than two rows, or where all predictions or targets are equal."""
        predicted, actual = self.state().reshape(-1, 2).T
        return {"pearson": pearson(predicted, actual), "spearman": pearson(ranks(predicted), ranks(actual))}


class TokenLoss:
    """The mean loss of learned tokens (or rows), from sums over batches."""

    def __init__(self) -> None:
        self.sums = np.zeros(2)

    def update(self, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Add sums of losses, and over how many tokens they are."""
        losses, tokens = _pair(predictions, targets, np.float64)
        self.sums += losses.sum(), tokens.sum()

    def state(self) -> np.ndarray:
        """The sum of losses, and the tokens."""
        return self.sums.copy()

    def merge(self, state: np.ndarray) -> None:
        """Add the sums of another rank."""
        self.sums += state

    def result(self) -> dict[str, float]:
        """`token_loss` in nats, and its exponential, `perplexity`."""
        loss = float(self.sums[0] / self.sums[1]) if self.sums[1] else math.nan
        return {
            "token_loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else (loss if math.isnan(loss) else math.inf),
        }


class ExactMatch:
    """How many answers equal what was wanted, but for blanks at the ends and their number between words."""

    def __init__(self) -> None:
        self.counts = np.zeros(2)

    def update(self, predictions: ArrayLike, targets: ArrayLike) -> None:
        """Count rows of texts."""
        predicted, actual = [_texts(side) for side in (predictions, targets)]
        equal = sum(p.split() == t.split() for p, t in zip(predicted, actual, strict=True))
        self.counts += equal, len(actual)

    def state(self) -> np.ndarray:
        """Equal ones, and all."""
        return self.counts.copy()

    def merge(self, state: np.ndarray) -> None:
        """Add the counts of another rank."""
        self.counts += state

    def result(self) -> dict[str, float]:
        """`exact_match`."""
        return {"exact_match": float(self.counts[0] / self.counts[1]) if self.counts[1] else math.nan}


METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": Confusion,
    "f1": Confusion,
    "pearson": lambda classes: Correlation(),
    "spearman": lambda classes: Correlation(),
    "token_loss": lambda classes: TokenLoss(),
    "exact_match": lambda classes: ExactMatch(),
}
"""By the name of a figure, what yields it, given the number of classes."""


def metric_for(names: Sequence[str], classes: int = 2) -> Metric:
    """The one metric that yields all the named figures.

    Raises:
        UserError: a name is unknown, or no metric yields all of them.
    """
    for name in names:
        if name in METRICS:
            metric = METRICS[name](classes)
            if set(names) <= metric.result().keys():
                return metric
    raise UserError(
        "metrics", value=", ".join(names) or "none", rule=f"they are of one kind, among {', '.join(METRICS)}",
        remedy="Name accuracy and f1 (f1 for two classes), pearson and spearman, token_loss, or exact_match",
    )  # fmt: skip


def merged(metric: Metric, states: Iterable[np.ndarray]) -> dict[str, float]:
    """The figures over what all ranks know: `metric` is fresh, `states` are those of all ranks."""
    for state in states:
        metric.merge(state)
    return metric.result()


def mean_score(names: Sequence[str], result: dict[str, float]) -> float:
    """One figure for a task, in percent: the mean of its metrics, as GLUE averages them."""
    return 100 * math.fsum(result[name] for name in names) / len(names)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """The correlation of two series; sums are exact, so the order of the rows does not matter."""
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    if (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    x, y = x - math.fsum(x) / len(x), y - math.fsum(y) / len(y)
    xx, yy = math.fsum(x * x), math.fsum(y * y)
    if not xx or not yy:
        return math.nan
    return max(-1.0, min(1.0, math.fsum(x * y) / (math.sqrt(xx) * math.sqrt(yy))))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs. NaN stays NaN."""
    if np.isnan(values).any():
        return np.full(len(values), math.nan)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _pair(predictions: ArrayLike, targets: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    predicted: np.ndarray = np.atleast_1d(np.asarray(predictions, dtype=dtype))
    actual: np.ndarray = np.atleast_1d(np.asarray(targets, dtype=dtype))
    if predicted.shape != actual.shape or predicted.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and targets {actual.shape} are rows of equal length")
    return predicted, actual


def _texts(side: ArrayLike) -> list[str]:
    return [side] if isinstance(side, str) else [str(text) for text in np.asarray(side, dtype=object)]
