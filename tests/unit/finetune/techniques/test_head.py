"""The checkpoint's head where it fits the task, a new one otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgempi.errors import UserError
from edgempi.finetune.techniques.head import task_head
from models.zoo import VOCABULARY
from unit.finetune.tuned import TUNINGS, gradients, loss, made, rows, theirs_loss, trunk


@pytest.mark.parametrize(
    ("name", "labels", "fresh"),
    [
        ("bert", 2, {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"}),
        ("bert-base", 2, {"head.out.weight", "head.out.bias"}),  # its pooler is kept
        ("bert-classifier", 3, set()),
        ("bert-classifier", 2, {"head.out.weight", "head.out.bias"}),
        ("bert-tags", 7, {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"}),
        ("distilbert-base", 2, {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"}),
        ("gpt2", 3, {"head.out.weight"}),
        ("opt-350m", 3, {"head.out.weight"}),
        ("t5-encoder", 3, {"head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"}),
    ],
)
def test_what_is_new(name: str, labels: int, fresh: set[str], tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    task = task_head(spec, labels)
    assert set(task.fresh) == fresh
    assert task.applied(spec).head.rows == labels
    for technique in TUNINGS:
        found = trunk(tmp_path, spec, technique, labels=labels)
        given = rows(found.spec, labels="classes")
        given.labels.clamp_(max=labels - 1)
        said = loss(found, given)
        said.total.backward()
        assert said.outputs.shape == (4, labels)
        assert gradients(found)["head.out.weight"].any()
        again = trunk(tmp_path, spec, technique, units=("head",), labels=labels).trained.tensors["head.out.weight"]
        assert torch.equal(again, found.trained.tensors["head.out.weight"])


@pytest.mark.parametrize("technique", TUNINGS)
@pytest.mark.parametrize("name", ["bert-classifier", "gpt2-classifier", "roberta-classifier"])
def test_own_heads_say_what_transformers_says(name: str, technique: str, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    given = rows(spec, labels="classes")
    found = loss(trunk(tmp_path, spec, technique, labels=3, dtype=torch.float32), given)
    assert found.total.item() == pytest.approx(theirs_loss(model, spec, given).item(), rel=1e-4)


def test_a_score(tmp_path: Path) -> None:
    _, spec = made("bert", tmp_path)
    found = trunk(tmp_path, spec, "full", labels=1)
    given = rows(found.spec, labels="score")
    said = loss(found, given)
    assert said.outputs.shape == (4,)
    assert said.total.item() == pytest.approx(float(((said.outputs - given.labels.double()) ** 2).sum()))


def test_what_a_model_cannot_do(tmp_path: Path) -> None:
    _, two = made("t5", tmp_path / "t5")
    with pytest.raises(UserError, match="an encoder-decoder answers in text"):
        task_head(two, 2)
    assert task_head(two, None).head.rows == VOCABULARY
    _, bare = made("bert-base", tmp_path / "bert")
    with pytest.raises(UserError, match="the checkpoint has a head over the vocabulary"):
        task_head(bare, None)
