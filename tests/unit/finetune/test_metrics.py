"""Metrics against scipy and figures worked out by hand, over any sharing of the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.errors import UserError
from edgempi.finetune.metrics import (
    Confusion,
    Correlation,
    ExactMatch,
    Metric,
    TokenLoss,
    mean_score,
    merged,
    metric_for,
    pearson,
    ranks,
)

SCORES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=30)


def _of(metric: Metric, predictions: object, targets: object) -> dict[str, float]:
    metric.update(predictions, targets)  # type: ignore[arg-type]
    return metric.result()


def test_accuracy_and_f1_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    found = _of(Confusion(2), [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert found == {"accuracy": 0.7, "f1": pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))}
    assert mean_score(("f1", "accuracy"), found) == pytest.approx(100 * (0.7 + 2 / 3) / 2)


def test_an_answer_that_names_no_class_is_wrong_and_no_positive() -> None:
    assert _of(Confusion(2), [-1, -1, 1, 7], [1, 0, 1, 0]) == {"accuracy": 0.25, "f1": pytest.approx(2 / 3)}


def test_one_class_only() -> None:
    assert _of(Confusion(2), [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert _of(Confusion(2), [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0}
    assert _of(Confusion(2), [0, 0], [1, 1]) == {"accuracy": 0.0, "f1": 0.0}
    assert _of(Confusion(3), [0, 2, 1], [0, 1, 1]) == {"accuracy": pytest.approx(2 / 3)}


def test_hidden_labels_are_not_scored() -> None:
    with pytest.raises(UserError, match="labels of test are hidden"):
        Confusion(2).update([0, 1], [-1, -1])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], (0.8320502943378437, 0.8207826816681233)),
        ([1, 1, 2, 2, 3], [2, 1, 2, 3, 3], (11 / 14, 29 / 36)),
        ([1, 2, 3], [3, 2, 1], (-1.0, -1.0)),
        ([0.0, 1e-3, 2.0], [0.0, 10.0, 11.0], None),
    ],
)
def test_known_correlations(x: list[float], y: list[float], expected: tuple[float, float] | None) -> None:
    found = _of(Correlation(), x, y)
    if expected is None:  # ranks agree, values do not lie on a line
        expected = (found["pearson"], 1.0)
        assert 0.5 < found["pearson"] < 0.9
    assert (found["pearson"], found["spearman"]) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_correlations_are_those_of_scipy(rows: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(rows, dtype=float).T
    found = _of(Correlation(), x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found["pearson"])
        assert math.isnan(found["spearman"])
        return
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert (ranks(x) == stats.rankdata(x)).all()


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    x = np.array([1e9 + 1, 1e9 + 2, 1e9 + 4])
    assert pearson(x, np.array([1.0, 2.0, 4.0])) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "targets"), [([], []), ([1.0], [1.0]), ([2.0, 2.0], [1.0, 3.0]), ([math.nan, 1.0], [1.0, 3.0])]
)
def test_correlations_that_say_nothing(predictions: list[float], targets: list[float]) -> None:
    found = _of(Correlation(), predictions, targets)
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])


def test_nothing_at_all() -> None:
    for metric in (Confusion(2), Correlation(), TokenLoss(), ExactMatch()):
        assert all(math.isnan(value) for value in metric.result().values())


def test_token_loss_weighs_by_tokens() -> None:
    metric = TokenLoss()
    metric.update(6.0, 3)
    metric.update(1.0, 1)
    assert metric.result() == {"token_loss": 1.75, "perplexity": pytest.approx(math.exp(1.75))}
    assert _of(TokenLoss(), 1e6, 1)["perplexity"] == math.inf


def test_exact_match_forgives_blanks_only() -> None:
    found = _of(ExactMatch(), [" yes  sir\n", "Yes", ""], ["yes sir", "yes", ""])
    assert found == {"exact_match": pytest.approx(2 / 3)}


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_sharing_of_rows_over_ranks_changes_no_bit(rows: list[tuple[int, int]], count: int, dice: object) -> None:
    def fresh() -> list[Metric]:
        return [Confusion(9), Correlation(), ExactMatch()]

    whole = fresh()
    shares = [fresh() for _ in range(count)]
    for metric in whole:
        _feed(metric, rows)
    for row in rows:
        for metric in shares[dice.randrange(count)]:  # type: ignore[attr-defined]
            _feed(metric, [row])
    for i, metric in enumerate(whole):
        together = merged(fresh()[i], [share[i].state() for share in reversed(shares)])
        assert together.keys() == metric.result().keys()
        for name, value in metric.result().items():
            assert together[name] == value or (math.isnan(value) and math.isnan(together[name]))


def _feed(metric: Metric, rows: list[tuple[int, int]]) -> None:
    x, y = zip(*rows, strict=True)
    if isinstance(metric, Confusion):
        metric.update([v + 4 for v in x], [v + 4 for v in y])
    elif isinstance(metric, ExactMatch):
        metric.update([str(v) for v in x], [str(v) for v in y])
    else:
        metric.update([v / 7 for v in x], [v / 3 for v in y])


def test_metrics_by_name() -> None:
    assert isinstance(metric_for(("f1", "accuracy")), Confusion)
    assert isinstance(metric_for(("accuracy",), 3), Confusion)
    assert isinstance(metric_for(("pearson", "spearman")), Correlation)
    for names, classes in ((("f1",), 3), (("accuracy", "pearson"), 2), (("bleu",), 2), ((), 2)):
        with pytest.raises(UserError):
            metric_for(names, classes)
