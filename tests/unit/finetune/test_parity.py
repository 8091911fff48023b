"""Full fine-tuning is transformers', LoRA is peft's: losses, gradients and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgempi.finetune.trunk import Trunk
from unit.finetune.tuned import KINDS, NAMES, gradients, loss, made, rows, theirs, theirs_loss, trunk

STEPS = 4
RATE = 0.05
CLOSE = 1e-4
LABELLED = {"bert-classifier": 3, "roberta-classifier": 3, "distilbert-classifier": 2, "gpt2-classifier": 3}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_full_fine_tuning(name: str, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    given = rows(spec)
    expected = theirs_loss(model, spec, given)
    expected.backward()
    ours = trunk(tmp_path, spec, "full", dtype=torch.float32)
    found = loss(ours, given).total
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=CLOSE)
    _assert_gradients(ours, model)


@pytest.mark.parametrize(("name", "classes"), LABELLED.items())
def test_gradients_under_a_checkpoint_s_own_head(name: str, classes: int, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    given = rows(spec, labels="classes")
    given.labels.clamp_(max=classes - 1)
    expected = theirs_loss(model, spec, given)
    expected.backward()
    ours = trunk(tmp_path, spec, "full", dtype=torch.float32, labels=classes)
    found = loss(ours, given).total
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=CLOSE)
    _assert_gradients(ours, model)


@pytest.mark.parametrize("name", KINDS)
def test_steps_of_full_fine_tuning(name: str, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    given = rows(spec)
    ours = trunk(tmp_path, spec, "full", dtype=torch.float32)
    mine = torch.optim.SGD(ours.trained.tensors.values(), lr=RATE)
    other = torch.optim.SGD(model.parameters(), lr=RATE)
    _assert_same_steps(ours, mine, model, other, given)


@pytest.mark.parametrize("name", KINDS)
def test_steps_of_lora(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, spec = made(name, tmp_path)
    targets = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}[name]
    given = rows(spec)
    ours = trunk(tmp_path, spec, "lora", dtype=torch.float32, seed=1)
    tuning = ours.tuning
    config = peft.LoraConfig(r=tuning.rank, lora_alpha=tuning.alpha, target_modules=targets, lora_dropout=0.0)
    wrapped = peft.get_peft_model(model, config)
    learnt = _lora_names(wrapped, ours)
    assert len(learnt) == len(ours.trained.shapes)
    with torch.no_grad():
        for mine, other in learnt.items():
            other.copy_(ours.trained.tensors[mine])
    first = torch.optim.SGD(ours.trained.tensors.values(), lr=RATE)
    second = torch.optim.SGD(learnt.values(), lr=RATE)
    _assert_same_steps(ours, first, wrapped, second, given)
    for mine, other in learnt.items():
        torch.testing.assert_close(ours.trained.tensors[mine], other, atol=CLOSE, rtol=CLOSE)


def _lora_names(wrapped: Any, ours: Trunk) -> dict[str, torch.Tensor]:
    """Our names of peft's factors."""
    from edgempi.models.families import family_named

    family, named, found = family_named(ours.spec.family), dict(wrapped.named_parameters()), {}
    for name in ours.trained.shapes:
        stem, which = name.removesuffix(".a").removesuffix(".b").removesuffix(".lora"), name[-1].upper()
        for place in family.source(f"{stem}.weight").names:
            theirs = f"base_model.model.{place.removesuffix('.weight')}.lora_{which}.default.weight"
            if theirs in named:
                found[name] = named[theirs]
    return found


def _assert_same_steps(ours: Trunk, mine: Any, model: Any, other: Any, given: Any) -> None:
    for _ in range(STEPS):
        mine.zero_grad()
        other.zero_grad()
        expected = theirs_loss(model, ours.spec, given) / given.targets
        found = loss(ours, given).total / given.targets
        assert found.item() == pytest.approx(expected.item(), rel=CLOSE)
        expected.backward()
        found.backward()
        mine.step()
        other.step()
    assert expected.item() != pytest.approx(theirs_loss(model, ours.spec, given).item() / given.targets, rel=CLOSE)


def _assert_gradients(ours: Trunk, model: Any) -> None:
    compared = 0
    for parameter, gradient in gradients(ours).items():
        expected = theirs(model, ours.spec, parameter)
        assert expected is not None, parameter
        scale = max(0.1, expected.abs().max().item())  # some are zero but for rounding
        assert (gradient - expected).abs().max().item() <= CLOSE * scale, parameter
        compared += bool(expected.any())
    assert compared > 10
