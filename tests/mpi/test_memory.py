"""Memory: four devices that share a model need far less each than one that holds it alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config

from edgempi.models.source import read_spec
from mpi.launch import run_ranks

pytestmark = pytest.mark.mpi

LAYERS, WIDTH, VOCABULARY, POSITIONS, TOKENS = 6, 768, 8000, 256, 64
LINEARS = (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1))
"""By name, inputs and outputs in widths."""
LIMIT = 0.40
"""Of the one-process figure: a quarter, and what each device needs beside its share."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of GPT-2's shape, 200 MB, its weights cheap to draw."""
    made = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=12, n_positions=POSITIONS, vocab_size=VOCABULARY)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(made)
    shapes = {"wte.weight": (VOCABULARY, WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for i in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (WIDTH,), f"h.{i}.{norm}.bias": (WIDTH,)}
        for name, inputs, outputs in (
            ("attn.c_attn", 1, 3),
            ("attn.c_proj", 1, 1),
            ("mlp.c_fc", 1, 4),
            ("mlp.c_proj", 4, 1),
        ):
            shapes[f"h.{i}.{name}.weight"] = (inputs * WIDTH, outputs * WIDTH)
            shapes[f"h.{i}.{name}.bias"] = (outputs * WIDTH,)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.empty(shape).uniform_(-0.05, 0.05, generator=generator) for name, shape in shapes.items()}
    save_file({f"transformer.{name}": tensor for name, tensor in tensors.items()}, made / "model.safetensors")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def peaks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[int]]:
    """Bytes at each rank's peak above the import baseline, alone and shared by four."""
    root = tmp_path_factory.mktemp("peaks")
    order, found = root / "order.json", {}
    order.write_text(json.dumps({"folder": str(folder), "spec": read_spec(folder).as_dict(), "tokens": TOKENS}))
    for ranks in (1, 4):
        result = root / f"peaks{ranks}.json"
        ended = run_ranks(ranks, "mpi.ranks_memory", [str(order), str(result)], 90)
        assert ended.status == 0, ended.err
        found[ranks] = json.loads(result.read_text())
    return found


def test_four_devices_need_at_most_two_fifths_each(peaks: dict[int, list[int]]) -> None:
    assert max(peaks[4]) <= LIMIT * peaks[1][0], peaks


def test_one_device_keeps_one_copy(folder: Path, peaks: dict[int, list[int]]) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    assert weights < peaks[1][0] <= 1.25 * weights
