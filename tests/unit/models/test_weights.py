"""Weights and configuration belong together, and loading says so where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgempi.comm import lone_world
from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.errors import UserError
from edgempi.inference.runner import Runner
from edgempi.models.checkpoint import SINGLE, Checkpoint
from edgempi.models.source import read_spec
from edgempi.ops.linear import PLAIN
from edgempi.parallel.batch import Batch
from edgempi.plan.plan import Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from models.zoo import FAMILIES, build

MODELS = {model.name: model for model in FAMILIES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of the zoo."""
    build(MODELS["llama"], tmp_path)
    return tmp_path


def _alone(spec: ModelSpec) -> Program:
    return plan_program(spec, [1.0], ParallelConfig(modes=[Sharing.single]), PlannerConfig(), Forms())


def _load(folder: Path) -> Runner:
    spec = read_spec(folder)
    return Runner(lone_world(), _alone(spec), spec, folder, PLAIN)


def _edit_config(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def _edit_weights(folder: Path, drop: str | None = None, **changed: torch.Tensor) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name: t for name, t in {**tensors, **changed}.items() if name != drop}, folder / SINGLE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"intermediate_size": 40}, "shape [44, 48]; config.json makes it [40, 48]"),
        ({"hidden_size": 96}, "config.json makes it"),
        ({"vocab_size": 60}, "shape [61, 48]; config.json makes it [60, 48]"),
        ({"num_key_value_heads": 6}, "shape [24, 48]; config.json makes it [48, 48]"),
        ({"num_hidden_layers": 4}, "no tensor model.layers.3."),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_a_configuration_that_is_not_the_weights(folder: Path, changed: dict, said: str) -> None:
    _edit_config(folder, **changed)
    with pytest.raises(UserError) as caught:
        _load(folder)
    assert said in str(caught.value)
    assert "Use the config.json that belongs to these weights" in str(caught.value)


def test_a_missing_tensor(folder: Path) -> None:
    _edit_weights(folder, drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"no tensor model.layers.1.mlp.up_proj.weight; config.json describes"):
        _load(folder)


def test_integer_weights(folder: Path) -> None:
    shape = load_file(folder / SINGLE)["lm_head.weight"].shape
    _edit_weights(folder, **{"lm_head.weight": torch.zeros(shape, dtype=torch.int8)})
    with pytest.raises(UserError, match=r"tensor lm_head.weight in model.safetensors: dtype I8"):
        _load(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "mamba"}, "model_type: mamba; the families are distilbert"),
        ({"model_type": "no such thing"}, "config.json"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "LlamaForQuestionAnswering"),
        ({"hidden_act": "mish"}, "activation: mish"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "long"),
        ({"hidden_size": "wide"}, "config.json"),
    ],
)
def test_a_model_that_edgempi_does_not_run(folder: Path, changed: dict, said: str) -> None:
    _edit_config(folder, **changed)
    with pytest.raises(UserError) as caught:
        _load(folder)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_no_configuration(folder: Path, content: str | None) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_spec(folder)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.name)
def test_every_tensor_of_the_file_is_read_once(model, tmp_path: Path) -> None:
    """Alone, a device reads the whole file, no weight twice, and no weight never: ties and fused tensors included."""
    build(model, tmp_path)
    runner = _load(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        size = sum(torch.Size(entry.shape).numel() * 4 for entry in checkpoint.entries.values())
    assert runner.data_bytes_read == size


def test_a_tied_head_shares_the_table(tmp_path: Path) -> None:
    build(MODELS["qwen2"], tmp_path)
    spec = read_spec(tmp_path)
    assert spec.head.tied
    runner = Runner(lone_world(), _alone(spec), spec, tmp_path, PLAIN)
    units = runner._executors["prefill"].units
    table, head = units["dec.embed"]._table, units["head"]._out._blocks[0][0]
    assert head.data_ptr() == table.data_ptr()


def test_an_own_head_in_a_tied_models_file_counts(tmp_path: Path) -> None:
    build(MODELS["qwen2"], tmp_path)
    own = torch.randn(61, 48)
    _edit_weights(tmp_path, **{"lm_head.weight": own})
    assert not read_spec(tmp_path).head.tied
    runner = _load(tmp_path)
    got = runner.outputs(Batch(dec_ids=torch.arange(4, 11)[None]))["logits"]
    assert got.shape == (1, 7, 61)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.name)
def test_a_spec_travels_as_json(model, tmp_path: Path) -> None:
    build(model, tmp_path)
    spec = read_spec(tmp_path)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert spec.family == model.name
