"""Small models with rows to learn from, as trunks and as transformers runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.finetune.data.collate import Rows, collate
from edgempi.finetune.data.samples import IGNORED, Sample
from edgempi.finetune.loss import Loss
from edgempi.finetune.techniques import Initial
from edgempi.finetune.techniques.head import TaskHead, task_head
from edgempi.finetune.trunk import Trunk, load_trunk
from edgempi.models.families import family_named
from edgempi.models.source import read_spec
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning
from models.zoo import FAMILIES, PAD, VARIANTS, VOCABULARY, build

MODELS = {model.name: model for model in (*FAMILIES, *VARIANTS)}
NAMES = [model.name for model in FAMILIES]
KINDS = ["bert", "llama", "t5"]
"""An encoder, a decoder, an encoder-decoder."""
TUNINGS = {
    technique.value: Tuning(technique, rank=3, bottleneck_reduction=4, reduction=2, alpha=5) for technique in Technique
}


def made(name: str, folder: Path) -> tuple[Any, ModelSpec]:
    """A model by its name: transformers' own, and its spec."""
    return build(MODELS[name], folder), read_spec(folder)


def samples(spec: ModelSpec, count: int = 4, labels: str = "tokens", seed: int = 0) -> list[Sample]:
    """Rows of unequal lengths: `tokens`, `classes` (of three), or `score`."""
    random = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return random.integers(4, VOCABULARY, length).astype(np.int32)

    found = []
    for row in range(count):
        enc = ids(9 - 2 * (row % 4)) if spec.enc else None
        dec = ids(7 - row % 3) if spec.dec else None
        if labels == "tokens":
            wanted = ids(len(enc if dec is None else dec))
            wanted[: row % 2 + 1] = IGNORED
        elif labels == "classes":
            wanted = np.asarray(row % 3, dtype=np.int32)
        else:
            wanted = np.asarray(row / 3, dtype=np.float32)
        found.append(Sample(f"{row}", wanted, enc, dec))
    return found


def rows(spec: ModelSpec, **more: Any) -> Rows:
    """The samples, padded."""
    return collate(samples(spec, **more), PAD)


def trunk(
    folder: Path, spec: ModelSpec, technique: str, units: tuple[str, ...] = (), dtype: torch.dtype = torch.float64,
    labels: int | None = None, seed: int = 0, initial: Initial = Initial.magnitude, **more: Any,
) -> Trunk:  # fmt: skip
    """A trunk of some units, all by default; nothing of what starts at zero is left there if a seed is given."""
    task: TaskHead | None = None if labels is None else task_head(spec, labels)
    tuning = more.pop("tuning", TUNINGS[technique])
    found = load_trunk(folder, spec, units or spec.units, tuning, dtype, seed, task, initial, **more)
    if seed:
        stir(found)
    return found


def stir(trunk: Trunk) -> None:
    """Move every trained tensor a little, each in its own way, the same on every device."""
    with torch.no_grad():
        for name, tensor in trunk.trained.tensors.items():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name) + sum(name.encode())))
            tensor.add_(0.05 * noise.to(tensor.dtype))


def loss(trunk: Trunk, given: Rows, **more: Any) -> Loss:
    """The loss of a trunk that holds all."""
    found = trunk.forward(given, {}, **more)
    assert isinstance(found, Loss)
    return found


def gradients(trunk: Trunk) -> dict[str, Tensor]:
    """What has come together, by name; zero where nothing has."""
    return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in trunk.trained.tensors.items()}


def fields(spec: ModelSpec, given: Rows) -> dict[str, Tensor]:
    """What transformers' model is called with."""
    batch = given.batch
    first = "enc" if spec.enc else "dec"
    ids, padding = batch.ids(first), batch.padding(first)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if padding is None else padding.long()}
    if spec.enc and spec.dec:
        found["decoder_input_ids"] = batch.dec_ids
        if batch.dec_padding is not None:
            found["decoder_attention_mask"] = batch.dec_padding.long()
    return found


def theirs_loss(model: Any, spec: ModelSpec, given: Rows) -> Tensor:
    """The sum that transformers' logits give."""
    logits = model(**fields(spec, given)).logits
    if given.labels.ndim == 1:
        if given.labels.is_floating_point():
            return F.mse_loss(logits[:, 0], given.labels.to(logits.dtype), reduction="sum")
        return F.cross_entropy(logits, given.labels, reduction="sum")
    shift = 1 if spec.enc is None else 0
    logits = logits[:, : logits.shape[1] - shift]
    return F.cross_entropy(logits.flatten(0, 1), given.labels[:, shift:].flatten(), reduction="sum")


def theirs(model: Any, spec: ModelSpec, name: str) -> Tensor | None:
    """The gradient of a parameter in transformers' model, by our name; None where that has no such parameter."""
    source = family_named(spec.family).source(name)
    named = dict(model.named_parameters(remove_duplicate=False))
    found = next((named[other] for other in source.names if other in named), None)
    if found is None:
        return None
    gradient = torch.zeros_like(found) if found.grad is None else found.grad
    index, count = source.part
    return (gradient.t() if source.transposed else gradient).chunk(count)[index]


def chain(trunks: Sequence[Trunk], given: Rows, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of stages one after another, and the gradients by name, summed over the stages that share one."""
    state: dict[str, Tensor] = {}
    passed = []
    for stage in trunks:
        leaves = {name: x.detach().requires_grad_(x.requires_grad) for name, x in state.items()}
        found = stage.forward(given, leaves, **more)
        passed.append((leaves, found))
        if isinstance(found, dict):
            assert {name: tuple(x.shape) for name, x in found.items()} == stage.boundary(given, "read" in more)
            state = found
    assert isinstance(found, Loss)
    found.total.backward()
    for (_, handed), (leaves, _) in zip(reversed(passed[:-1]), reversed(passed[1:]), strict=True):
        assert isinstance(handed, dict)
        back = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward([handed[name] for name in back], list(back.values()))
    total: dict[str, Tensor] = {}
    for stage in trunks:
        for name, gradient in gradients(stage).items():
            total[name] = total[name] + gradient if name in total else gradient
    return found.total.detach(), total
