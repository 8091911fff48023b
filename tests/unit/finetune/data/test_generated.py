"""The made-up tasks: read as GLUE is, learned by what compares words, not learned with labels dealt out anew."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from edgempi.errors import UserError
from edgempi.finetune.data import generated
from edgempi.finetune.data.examples import Labelled
from edgempi.finetune.data.generated import SHAPES, made_rows, vocabulary, write_task
from edgempi.finetune.data.glue import SPLITS, glue_task, read_glue


@pytest.mark.parametrize("name", SHAPES)
def test_the_reader_of_glue_reads_them(tmp_path: Path, name: str) -> None:
    write_task(tmp_path, name, train=300, dev=100, test=50)
    known, seen = set(vocabulary()), set()
    for split, count in zip(SPLITS, (300, 100, 50), strict=True):
        loaded = read_glue(tmp_path, name, split)
        assert len(loaded.examples) == count
        assert loaded.tally.rows == {}
        assert loaded.labelled == (split != "test")
        for example in loaded.examples:
            assert isinstance(example, Labelled)
            assert {word for text in example.texts for word in text.split()} <= known
            assert example.texts not in seen
            seen.add(example.texts)
    labels = [row.label for row in made_rows(name, 2000, seed=5)]
    if not glue_task(name).is_score:
        assert 0.46 < labels.count(labels[0]) / 2000 < 0.54


def test_the_bytes_are_the_same_everywhere(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for name in SHAPES:
        folder = write_task(tmp_path, name, seed=3, train=200, dev=50, test=20)
        for path in sorted(folder.iterdir()):
            digest.update(path.read_bytes())
    assert digest.hexdigest()[:16] == "692db542d9c1e8cb"
    assert made_rows("mrpc", 5, seed=3) == made_rows("mrpc", 9, seed=3)[:5]
    assert made_rows("mrpc", 5, seed=3) != made_rows("mrpc", 5, seed=4)
    with pytest.raises(UserError, match=r"generated task: cola"):
        made_rows("cola", 1, seed=0)


def test_more_rows_than_there_are_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "KEEPERS", ("anna", "boris"))
    monkeypatch.setattr(generated, "KEPT", ("map", "drum"))
    monkeypatch.setattr(generated, "ANSWERS", {"where": ("here",), "why": ("for luck",)})
    # 2 x 2 x 2 x 4 questions, and for each 3 x 4 sentences.
    with pytest.raises(UserError, match=r"generated rows: 1000; qnli has little more than 384 that differ"):
        made_rows("qnli", 1000, seed=0)
    assert len(made_rows("qnli", 300, seed=0)) == 300


def test_rows_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "MRPC").write_text("a file")
    with pytest.raises(UserError, match=r"generated rows in .*MRPC: File exists; they can be written there"):
        write_task(tmp_path, "mrpc", train=4, dev=2, test=1)


def test_shuffled_labels_change_the_training_rows_only(tmp_path: Path) -> None:
    plain = write_task(tmp_path / "a", "sst2", train=400, dev=50, test=20)
    control = write_task(tmp_path / "b", "sst2", train=400, dev=50, test=20, shuffled=True)
    for name in ("dev.tsv", "test.tsv"):
        assert (plain / name).read_bytes() == (control / name).read_bytes()
    true = read_glue(plain, "sst2", "train").examples
    dealt = read_glue(control, "sst2", "train").examples
    assert [e.texts for e in true] == [e.texts for e in dealt]  # type: ignore[union-attr]
    same = sum(a == b for a, b in zip(true, dealt, strict=True))
    assert 150 < same < 250
    assert sorted(e.label for e in true) == sorted(e.label for e in dealt)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SHAPES)
def test_they_can_be_learned_and_their_control_cannot(tmp_path: Path, name: str) -> None:
    for shuffled in (False, True):
        folder = write_task(tmp_path / str(shuffled), name, train=2000, dev=1000, test=1, shuffled=shuffled)
        train, test = (read_glue(folder, name, split).examples for split in ("train", "validation"))
        found = _Learner(train).score(test, glue_task(name).is_score)  # type: ignore[arg-type]
        if shuffled:
            assert abs(found - (0 if glue_task(name).is_score else 0.5)) < 0.08
        else:
            assert 0.65 < found < 0.94


class _Learner:
    """A linear model of which words meet (of the two texts, or of one and its next), by averaged gradient steps."""

    def __init__(self, examples: tuple[Labelled, ...]) -> None:
        self.numbers: dict[tuple[str, str], int] = {}
        rows = [(self._features(example), float(example.label or 0)) for example in examples]
        weights, self.weights = np.zeros(len(self.numbers)), np.zeros(len(self.numbers))
        self.middle = float(np.mean([label for _, label in rows]))
        for epoch in range(4):
            for features, label in rows:
                weights[features] += 0.3 / len(features) * (label - self.middle - weights[features].sum())
            self.weights += weights / 3 * (epoch > 0)

    def score(self, examples: tuple[Labelled, ...], is_score: bool) -> float:
        """Accuracy, or the correlation of scores."""
        known = len(self.weights)
        found = [[f for f in self._features(example) if f < known] for example in examples]
        predicted = np.array([self.weights[features].sum() + self.middle for features in found])
        actual = np.array([example.label for example in examples])
        return float(np.corrcoef(predicted, actual)[0, 1] if is_score else ((predicted > 0.5) == actual).mean())

    def _features(self, example: Labelled) -> list[int]:
        first = example.texts[0].split()
        if len(example.texts) == 2:
            met = list(product(first, example.texts[1].split()))
        else:
            met = [(a, b) for i, a in enumerate(first) for b in ("", *first[i + 1 : i + 7], first[-1])]
        return [self.numbers.setdefault(pair, len(self.numbers)) for pair in dict.fromkeys(met)]
