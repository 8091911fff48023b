"""What a device holds is counted from its tensors: each storage once, whatever refers to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from edgempi.finetune import holdings
from edgempi.finetune.holdings import Holdings, storages, tensors_in
from edgempi.finetune.optim import Method, Optimizing, Updater


@dataclass
class Layer:
    """Holds tensors in all ways that occur."""

    weight: torch.Tensor
    more: Any


class Slotted:
    __slots__ = ("bias",)

    def __init__(self, bias: torch.Tensor) -> None:
        self.bias = bias


def test_storages_count_once() -> None:
    table = torch.zeros(10, 4)
    packed = (
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16)) if torch.backends.mkldnn.is_available() else None
    )
    layer = Layer(table, {"rows": [table[:3], (Slotted(torch.zeros(5)), packed)], "call": lambda: table})
    layer.more["self"] = layer
    found = storages(tensors_in(layer, layer.weight))
    assert sum(found.values()) == 160 + 20 + (1024 if packed is not None else 0)


def test_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([150, 400, 900, 300, 700, 700])
    monkeypatch.setattr(holdings, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(holdings, "forget_peak", lambda: None)
    frozen, leaf = torch.zeros(8), torch.zeros(4, requires_grad=True)
    trained = {"leaf": leaf}
    updater = Updater(trained, Optimizing(Method.adamw, 0.1))
    held = Holdings("setup", 100)
    held.turn("setup")
    held.turn("train", [frozen, trained])
    for _ in range(3):
        leaf.sum().backward()
        held.weigh(trained, updater)
        updater.update(0.1, 1.0)
    held.turn("switch")
    held.turn("cached", trained)
    found = held.as_dict()
    assert found["setup"]["peak"] == 300
    train = found["train"]
    assert (train["weights"], train["gradients"]) == (48, 16)
    assert train["optimizer"] == 16 * 2  # two moments
    assert (train["peak"], train["activations"]) == (800, 800 - 48 - 16 - 32)
    assert (found["switch"]["peak"], found["cached"]["peak"]) == (200, 600)
    assert found["cached"]["weights"] == 16
    assert held.peak == 800
