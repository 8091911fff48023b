"""The model that the project ships writes the same tokens on one, two, three and four ranks as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgempi.assets.household.commands import commands
from edgempi.models.source import locate, read_spec, read_tokenizer
from edgempi.tasks.infer import encode
from mpi.launch import run_ranks

pytestmark = pytest.mark.mpi

PROMPTS, NEW_TOKENS = 6, 48


@pytest.fixture(scope="module")
def order() -> dict[str, Any]:
    """Held-out commands, and what transformers answers."""
    folder = locate("assistant")
    tokenizer = read_tokenizer(folder)
    prompts = [encode(tokenizer, c.text) for c in commands("heldout", seed=5, count=PROMPTS)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for ids in prompts:
        whole = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        expected.append(whole[len(ids) :].tolist())
    spec = read_spec(folder).as_dict()
    return {"folder": str(folder), "spec": spec, "prompts": prompts, "new_tokens": NEW_TOKENS, "expected": expected}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_tokens_are_those_of_transformers(order: dict[str, Any], ranks: int, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps(order))
    ended = run_ranks(ranks, "mpi.ranks_shipped", [str(tmp_path / "order.json"), str(tmp_path / "result.json")], 90)
    assert ended.status == 0, ended.err
    for rank in json.loads((tmp_path / "result.json").read_text()):
        for way, written in rank.items():
            assert written == order["expected"], way
