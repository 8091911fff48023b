"""Full fine-tuning trains what transformers calls parameters, all of them and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgempi.plan.training.technique import Technique, Tuning, trained_elements
from unit.finetune.tuned import MODELS, loss, made, rows, theirs_loss, trunk


@pytest.mark.parametrize("name", MODELS)
def test_as_many_parameters_as_transformers_has(name: str, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert trained_elements(spec, Tuning(Technique.full)) == count


def test_what_bart_adds_to_its_logits_stays(tmp_path: Path) -> None:
    model, spec = made("bart", tmp_path)
    assert model.final_logits_bias.any()
    ours, given = trunk(tmp_path, spec, "full", dtype=torch.float32), rows(spec)
    assert "head.out.bias" not in ours.trained
    before = loss(ours, given)
    assert before.total.item() == pytest.approx(theirs_loss(model, spec, given).item(), rel=1e-4)
    before.total.backward()
    torch.optim.SGD(ours.trained.tensors.values(), lr=1e-3).step()
    assert loss(ours, given).total < before.total
