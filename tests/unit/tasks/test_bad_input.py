"""What a person can get wrong: one line that names it, with the rule and the remedy, before any rank starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.zoo import FAMILIES, build

LLAMA = next(model for model in FAMILIES if model.name == "llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    made = tmp_path_factory.mktemp("llama")
    build(LLAMA, made)
    return made


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def refused(run_edgempi, *words: str) -> str:
    """The one line that `edgempi plan` refuses with."""
    done = run_edgempi("plan", *words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("edgempi: ")
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["parallel=pipeline", "cluster.ranks=4"], "pipeline stages: 4; the model has 3 layers"),
        (["data.length=65"], "request length: 65 tokens; the model has positions for 64"),
        (["cluster.memory_budget_bytes=1000000"], "device device0: needs 42 MB for its share; its memory budget"),
        (["planner=manual", "planner.heads=[4,4]"], "stage 0 dec heads: [4, 4] (sum 8); 2 counts"),
        (["planner=manual", "planner.heads=[3,3]"], "stage 0 dec heads: [3, 3]; 2 query heads share one"),
        (["parallel=sequence", "planner=manual", "planner.heads=[4,2]"], "planner.heads: [4, 2]; sequence does not"),
        (["planner.speeds=[.inf,1]"], "planner.speeds"),
        (["parallel.decode=data"], "parallel.decode: data; it is tensor, hybrid or null"),
        (["task.save=/nonexistent/plan.yaml"], "task.save: /nonexistent/plan.yaml"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be(run_edgempi, folder: Path, words: list[str], said: str) -> None:
    assert said in refused(run_edgempi, f"model.path={folder}", *words)


def test_a_folder_that_is_not_there(run_edgempi) -> None:
    assert "model.path: /nowhere/at/all" in refused(run_edgempi, "model.path=/nowhere/at/all")


def test_a_truncated_file(run_edgempi, damaged: Path) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "its header names" in refused(run_edgempi, f"model.path={damaged}")


def test_weights_of_a_dtype_that_is_none(run_edgempi, damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    save_file({**tensors, "model.norm.weight": torch.ones(48, dtype=torch.int64)}, damaged / "model.safetensors")
    assert "dtype I64" in refused(run_edgempi, f"model.path={damaged}")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_hidden_layers", 4, "no tensor model.layers.3."),
        ("num_hidden_layers", 2, "config.json describes 2 layers"),
        ("intermediate_size", 48, "shape [44, 48]; config.json makes it [48, 48]"),
        ("hidden_act", "quick_gelu", "configuration activation: quick_gelu"),
        ("model_type", "gemma", "model_type: gemma"),
    ],
)
def test_a_configuration_of_another_model(run_edgempi, damaged: Path, field: str, value: object, said: str) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, field: value}))
    assert said in refused(run_edgempi, f"model.path={damaged}")
