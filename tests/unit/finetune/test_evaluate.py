"""Evaluation: the same figures however rows are shared; what is read from outputs and from written answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from edgempi.comm import World, lone_world
from edgempi.errors import UserError
from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.samples import IGNORED, Sample
from edgempi.finetune.evaluate import (
    LabelTexts,
    by_length,
    classes,
    evaluate,
    evaluate_written,
    own_rows,
    scores,
    tokens,
)
from edgempi.finetune.metrics import Confusion, Correlation, ExactMatch, TokenLoss
from edgempi.finetune.picked import Data, Picked
from edgempi.parallel.batch import Batch
from edgempi.plan.apportion import Span
from unit.comm.threads import on_ranks
from unit.finetune.learner import Found, Learner, data, fresh

WEIGHTS = [(1.0,), (1.0, 1.0), (2.0, 0.0, 1.0)]


def _rows(labels: Sequence[object], dtype: torch.dtype = torch.int64) -> Rows:
    return Rows(Batch(), torch.tensor(labels, dtype=dtype), ("",) * len(labels), len(labels))


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_figures_do_not_depend_on_who_has_which_rows(weights: tuple[float, ...]) -> None:
    given = data(11, 3)

    def body(world: World) -> dict[str, float]:
        with torch.inference_mode(False):
            return evaluate(world, Learner(world, fresh(), weights), given, tokens, ExactMatch)

    for found in on_ranks(len(weights), body):
        assert found == pytest.approx(_by_hand(given), rel=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_token_loss_is_the_loss(weights: tuple[float, ...]) -> None:
    given = data(11, 3)

    def body(world: World) -> dict[str, float]:
        with torch.inference_mode(False):
            return evaluate(world, Learner(world, fresh(), weights), given, None, TokenLoss)

    for found in on_ranks(len(weights), body):
        assert found["token_loss"] == pytest.approx(_by_hand(given)["loss"], rel=1e-12)
        assert found["loss"] == pytest.approx(found["token_loss"], rel=1e-12)
        assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def _by_hand(given: Data) -> dict[str, float]:
    """Sample by sample."""
    learner = Learner(lone_world(), fresh())
    loss, right, targets = 0.0, 0, 0
    for picked in Data(given.samples, 1, given.pad).picked(np.arange(len(given.samples))):
        found = learner.evaluate(1, picked.rows_of)
        labels = picked.rows_of((0, 1)).labels
        loss += found.loss_sum
        targets += picked.targets
        right += int(((found.outputs[0][1] == labels) | (labels == IGNORED)).all())
    return {"loss": loss / targets, "exact_match": right / len(given.samples), "rows": 11, "unreadable": 0}


def test_long_rows_come_first() -> None:
    given = data(9, 3)
    lengths = [given.samples[number].tokens for number in by_length(given)]
    assert lengths == sorted(lengths, reverse=True)


def test_classes_and_scores() -> None:
    predictions, actual = classes(_rows([1, 0, 2]), torch.tensor([[0.1, 0.9, 0], [0.3, 0.2, 0.9], [0, 0, 1.0]]))
    assert np.asarray(predictions).tolist() == [1, 2, 2]
    assert np.asarray(actual).tolist() == [1, 0, 2]
    predictions, actual = scores(_rows([1.5, 3.0], torch.float32), torch.tensor([1.25, 2.0]))
    assert np.asarray(predictions).tolist() == [1.25, 2.0]
    assert np.asarray(actual).tolist() == [1.5, 3.0]
    with pytest.raises(UserError, match="hidden"):
        scores(_rows([-1, -1]), torch.tensor([1.25, 2.0]))


def test_hidden_classes_are_not_scored() -> None:
    class Head:
        def evaluate(self, rows: int, rows_of: object, read: object = None, keep: object = None) -> Found:
            return Found(0.0, (((0, rows), torch.zeros(rows, 2)),))

    hidden = [Sample("0", np.array(-1, np.int32), enc_ids=np.ones(3, np.int32))]
    with pytest.raises(UserError, match="hidden"):
        evaluate(lone_world(), Head(), Data(hidden, 2, 0), classes, partial(Confusion, 2))  # type: ignore[arg-type]


def test_tokens_are_compared_where_something_is_learned() -> None:
    labels = [[9, 4, 5, IGNORED], [9, 4, IGNORED, IGNORED], [9, 6, 5, 4], [IGNORED] * 4]
    said = [[IGNORED, 4, 5, IGNORED], [IGNORED, 4, IGNORED, IGNORED], [IGNORED, 6, 5, 5], [IGNORED] * 4]
    metric = ExactMatch()
    metric.update(*tokens(_rows(labels), torch.tensor(said)))
    assert metric.counts.tolist() == [2, 3]
    # Outputs may be padded to another width than the labels.
    wide = torch.nn.functional.pad(torch.tensor(said), (0, 2), value=IGNORED)
    assert tokens(_rows(labels), wide) == tokens(_rows(labels), torch.tensor(said))


def test_exact_matches_are_those_of_greedy_decoding() -> None:
    """A decoder that follows a table: teacher forcing says yes where writing on one's own ends up the same."""
    generator = torch.Generator().manual_seed(0)
    follows = torch.randint(1, 5, (5, 5), generator=generator)  # the next token, from the last two
    right = torch.randint(1, 5, (60, 2), generator=generator)
    for row in right[::2]:  # every other row is what it would write
        row[0] = follows[0, 0]
        row[1] = follows[0, row[0]]
    before = torch.cat([torch.zeros(60, 2, dtype=torch.int64), right], dim=1)
    forced = torch.stack([follows[before[:, place], before[:, place + 1]] for place in range(2)], dim=1)
    written = []
    for _ in right:
        last = [0, 0]
        for _ in range(2):
            last.append(int(follows[last[-2], last[-1]]))
        written.append(last[2:])
    metric = ExactMatch()
    metric.update(*tokens(_rows(right.tolist()), forced))
    matches = sum(row == wanted for row, wanted in zip(written, right.tolist(), strict=True))
    assert metric.counts.tolist() == [matches, 60]
    assert 30 <= matches < 60


def test_labels_that_are_texts() -> None:
    read = LabelTexts([[7, 1], [8, 7, 1], [8, 9, 1]])
    labels = [[7, 1, IGNORED], [7, 1, IGNORED], [8, 7, 1], [8, 7, 1], [8, 7, 1], [8, 9, 1]]
    said = [
        [7, 1, IGNORED],  # right
        [8, 1, IGNORED],  # begins two classes
        [8, 7, 1],  # right
        [8, 9, 1],  # the third class, whatever follows
        [7, 3, 3],  # the first
        [8, 9, 3],  # right up to an end that is no class's
    ]
    predictions, actual = read(_rows(labels), torch.tensor(said))
    assert np.asarray(predictions).tolist() == [0, -1, 1, 2, 0, -1]
    assert np.asarray(actual).tolist() == [0, 0, 1, 1, 1, 2]
    with pytest.raises(UserError, match="hidden"):
        read(_rows([[5, 1]]), torch.tensor([[5, 1]]))


def test_answers_that_name_no_class_are_counted() -> None:
    class Head:
        def evaluate(self, rows: int, rows_of: object, read: object = None, keep: object = None) -> Found:
            return Found(1.5 * rows, (((0, rows), torch.tensor([[7, 1], [3, 1]])[:rows]),))

    texts = [Sample(str(n), np.array([7, 1], np.int32), np.ones(3, np.int32), np.ones(2, np.int32)) for n in range(3)]
    found = evaluate(
        lone_world(), Head(), Data(texts, 2, 0), LabelTexts([[7, 1], [8, 1]]), partial(Confusion, 2)  # type: ignore[arg-type]
    )  # fmt: skip
    assert found == {"loss": 0.75, "accuracy": pytest.approx(2 / 3), "f1": 0.0, "rows": 3, "unreadable": 1}


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_written_answers(weights: tuple[float, ...]) -> None:
    given, wanted = data(7, 3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.5]
    answers = ["0.2", "1.0", "two", "2.8", "4.0", "4.0", "0.4"]

    def read_answer(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return -1

    def body(world: World) -> dict[str, float]:
        def write(picked: Picked) -> tuple[Span, list[str]]:
            rows = own_rows(picked, weights, world.rank)
            return rows, [answers[number] for number in picked.samples[slice(*rows)]]

        return evaluate_written(world, given, write, read_answer, wanted, Correlation)

    expected = np.corrcoef([0.2, 1.0, -1, 2.8, 4.0, 4.0, 0.4], wanted)[0, 1]
    for found in on_ranks(len(weights), body):
        assert found["pearson"] == pytest.approx(expected, rel=1e-12)
        assert (found["rows"], found["unreadable"]) == (7, 1)


def test_written_texts() -> None:
    given, wanted = data(4, 3), ["a  b", "c", "d", "e"]

    def write(picked: Picked) -> tuple[Span, list[str]]:
        return (0, picked.rows), [{1: "C"}.get(int(number), wanted[number]) for number in picked.samples]

    found = evaluate_written(lone_world(), given, write, str.strip, wanted, ExactMatch)
    assert found == {"exact_match": 0.75, "rows": 4, "unreadable": 0}
