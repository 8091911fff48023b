"""Families: every weight of the inventory has a place in the checkpoint, and old exports are read too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgempi.errors import UserError
from edgempi.models.checkpoint import SINGLE, Checkpoint
from edgempi.models.families import FAMILIES, family_named
from edgempi.models.source import read_spec
from edgempi.models.weights import find
from edgempi.plan.share import Holding, inventory
from models.zoo import FAMILIES as ZOO
from models.zoo import VARIANTS, Model, build

BY_NAME = {model.name: model for model in (*ZOO, *VARIANTS)}


def test_the_families() -> None:
    named = ["distilbert", "bert", "roberta", "gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5", "bart"]
    assert list(FAMILIES) == named == [model.name for model in ZOO]


def test_an_unknown_family() -> None:
    with pytest.raises(UserError, match="model_type: rwkv; the families are"):
        family_named("rwkv")


@pytest.mark.parametrize("model", [*ZOO, *VARIANTS], ids=lambda model: model.name)
def test_checkpoint_and_inventory_are_the_same_weights(model: Model, tmp_path: Path) -> None:
    build(model, tmp_path)
    spec = read_spec(tmp_path)
    family = family_named(spec.family)
    parameters = [parameter for unit in spec.units for parameter in inventory(spec, unit)]
    with Checkpoint(tmp_path) as checkpoint:
        read = {find(checkpoint, family.source(p.name), Holding(p, (0, p.shape[p.dim]))) for p in parameters}
        assert read == checkpoint.entries.keys()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("bert", ".LayerNorm.weight", ".LayerNorm.gamma"),
        ("bert", ".LayerNorm.bias", ".LayerNorm.beta"),
        ("gpt2-base", "h.", "transformer.h."),
        ("llama", "model.", ""),
        ("opt", "model.decoder.", "decoder."),
        ("bert-base", "encoder.", "bert.encoder."),
    ],
)
def test_names_of_other_exports(name: str, old: str, new: str, tmp_path: Path) -> None:
    build(BY_NAME[name], tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    skip = "cls.predictions.transform" if name == "bert" else "-"
    renamed = {key if key.startswith(skip) else key.replace(old, new, 1): value for key, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / SINGLE)
    spec = read_spec(tmp_path)
    family = family_named(spec.family)
    with Checkpoint(tmp_path) as checkpoint:
        for parameter in (p for unit in spec.units for p in inventory(spec, unit)):
            find(checkpoint, family.source(parameter.name), Holding(parameter, (0, parameter.shape[parameter.dim])))


def test_the_spec_of_a_llama(tmp_path: Path) -> None:
    build(BY_NAME["llama3"], tmp_path)
    spec = read_spec(tmp_path)
    assert spec.units == ("dec.embed", "dec.0", "dec.1", "dec.2", "dec.norm", "head")
    assert spec.generates and not spec.head.tied
    dec = spec.stacks["dec"]
    assert (dec.heads, dec.kv_heads, dec.group, dec.head_dim, dec.mlp_columns) == (6, 3, 2, 8, 44)
    assert dec.gated and dec.norm == "rms" and dec.norm_first and dec.causal
    assert dec.rotary is not None and len(dec.rotary.frequencies) == 4
    assert torch.tensor(dec.rotary.frequencies).diff().lt(0).all()


def test_the_spec_of_a_bart(tmp_path: Path) -> None:
    build(BY_NAME["bart"], tmp_path)
    spec = read_spec(tmp_path)
    assert spec.units[:4] == ("enc.embed", "enc.0", "enc.1", "dec.embed")
    assert spec.last == "dec" and spec.start_token is not None
    assert spec.stacks["dec"].cross and spec.stacks["dec"].embedding.shared
    assert not spec.stacks["enc"].cross and not spec.stacks["enc"].causal
