"""What a stage is planned to keep for its backward pass, and to hand on, is what a trunk keeps and hands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.finetune.loss import Loss
from edgempi.finetune.noise import noise_trunk
from edgempi.finetune.question import random_rows
from edgempi.finetune.trunk import Trunk
from edgempi.models.families import family_named
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.sizes import layer_bytes, pieces
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload

CASES: dict[str, tuple[str, str, dict[str, Any], Workload]] = {
    "bert": (
        "BertConfig", "BertForSequenceClassification",
        {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512},
        Workload(tokens=32),
    ),
    "llama": (
        "LlamaConfig", "LlamaForCausalLM",
        {
            "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 344,
        },
        Workload(tokens=32),
    ),
    "t5": (
        "T5Config", "T5ForConditionalGeneration",
        {"d_model": 128, "d_kv": 64, "num_layers": 3, "num_heads": 2, "d_ff": 512, "decoder_start_token_id": 0},
        Workload(tokens=8, memory_tokens=32),
    ),
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _spec(name: str) -> ModelSpec:
    import transformers

    config, architecture, sizes, _ = CASES[name]
    made = getattr(transformers, config)(**sizes, vocab_size=500, num_labels=2, architectures=[architecture])
    return family_named(name).spec(made, ())


def _kept_bytes(trunk: Trunk, work: Workload, count: int) -> int:
    """Bytes that a forward pass of some rows leaves behind, each storage once; frozen weights are among them."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = trunk.forward(random_rows(trunk.spec, work, count), {})
    assert isinstance(found, Loss)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("technique", Technique)
@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_that_are_planned(name: str, technique: Technique, dtype: str) -> None:
    spec, work = _spec(name), CASES[name][3]
    tuning = Tuning(technique, rank=8, reduction=4)
    trunk = noise_trunk(spec, spec.units, tuning, DTYPES[dtype])
    # What does not grow with the rows are weights, which are counted elsewhere.
    found = (_kept_bytes(trunk, work, 6) - _kept_bytes(trunk, work, 2)) / 4
    planned = sum(layer.stored for layer in layer_bytes(spec, tuning, work, dtype))
    assert 0.8 * found < planned < 1.35 * found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("technique", Technique)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_what_is_handed_on_is_as_planned(name: str, technique: Technique, dtype: str) -> None:
    spec, work = _spec(name), CASES[name][3]
    tuning = Tuning(technique, rank=8, reduction=4)
    units = tuple(unit for run in pieces(spec)[:-1] for unit in run)
    for cached in (False, True) if technique is Technique.parallel_adapter else (False,):
        trunk = noise_trunk(spec, units, tuning, DTYPES[dtype], not cached)
        rows = random_rows(spec, work, 2)

        def read(unit: str) -> Tensor:
            stack = unit.partition(".")[0]
            return torch.randn(2, work.of(spec, stack), spec.stacks[stack].width)

        state = trunk.forward(rows, {}, read if cached else None)
        assert isinstance(state, dict)
        planned = layer_bytes(spec, tuning, work, dtype, cached=cached)[-2]
        assert sum(x.nbytes for x in state.values()) == 2 * planned.forward
        assert sum(x.nbytes for x in state.values() if x.requires_grad) == 2 * planned.backward
