"""The side network is the published formula between transformers' own layers, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgempi.models.families import family_named
from edgempi.plan.share import inventory
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.training.technique import Technique, Tuning, side_spec
from models.zoo import build
from unit.finetune.tuned import KINDS, MODELS, fields, gradients, loss, made, rows, theirs_loss, trunk

LAYERS = {
    "bert": {"enc": "bert.encoder.layer"},
    "llama": {"dec": "model.layers"},
    "t5": {"enc": "encoder.block", "dec": "decoder.block"},
}
LAST = {"bert": "bert.encoder.layer.2", "llama": "model.norm", "t5": "decoder.final_layer_norm"}
"""What gives the last hidden state."""
NARROW = {
    "bert": {"hidden_size": 20, "intermediate_size": 26},
    "llama": {"hidden_size": 24, "head_dim": 4, "intermediate_size": 22},
    "t5": {"d_model": 20, "d_kv": 3, "d_ff": 26},
}
"""The sizes of a side network of half the width."""
CLOSE = 1e-4


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_formula(name: str, merge: bool, tmp_path: Path) -> None:
    wide, spec = made(name, tmp_path / "wide")
    tuning = Tuning(Technique.parallel_adapter, reduction=2, merge=merge)
    ours = trunk(tmp_path / "wide", spec, "parallel_adapter", dtype=torch.float32, seed=1, tuning=tuning)
    given = rows(spec)
    model = MODELS[name]
    narrow = build(replace(model, fields={**model.fields, **NARROW[name]}), tmp_path / "narrow")
    if name == "llama":
        narrow.model.rotary_emb.inv_freq = wide.model.rotary_emb.inv_freq[::2].clone()

    values = {n: tensor.detach().clone().requires_grad_() for n, tensor in ours.trained.tensors.items()}
    below = _activations(name, wide, spec, given)
    a = _beside(name, narrow, spec, values, below, given)
    hidden = F.linear(a, values["side.up.weight"], values["side.up.bias"])
    handle = wide.get_submodule(LAST[name]).register_forward_hook(
        lambda module, args, output: _put(output, _first(output) + hidden if merge else hidden)
    )
    expected = theirs_loss(wide, spec, given)
    handle.remove()
    expected.backward()

    found = loss(ours, given).total
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=CLOSE)
    assert found.item() != pytest.approx(theirs_loss(wide, spec, given).item(), rel=CLOSE)
    for parameter, gradient in gradients(ours).items():
        other = values[parameter].grad
        assert other is not None, parameter
        scale = max(0.1, other.abs().max().item())  # some are zero but for rounding
        assert (gradient - other).abs().max().item() <= CLOSE * scale, parameter


def _activations(name: str, wide: nn.Module, spec: ModelSpec, given: Any) -> dict[str, Tensor]:
    """What goes into the first layer of each stack of the backbone, and what comes out of every one, by unit."""
    found: dict[str, Tensor] = {}
    handles = []
    for stack, place in LAYERS[name].items():
        for layer in range(spec.stacks[stack].layers):
            module = wide.get_submodule(f"{place}.{layer}")

            def note(module: nn.Module, args: Any, kwargs: Any, output: Any, unit: str = f"{stack}.{layer}") -> None:
                if unit.endswith(".0"):
                    found[unit.replace(".0", ".embed")] = args[0] if args else kwargs["hidden_states"]
                found[unit] = _first(output)

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    with torch.no_grad():
        wide(**fields(spec, given))
    for handle in handles:
        handle.remove()
    return found


def _beside(
    name: str, narrow: nn.Module, spec: ModelSpec, values: dict[str, Tensor], below: dict[str, Tensor], given: Any
) -> Tensor:
    """The last hidden state of a narrow model, before each of whose layers the backbone's activations are mixed in."""
    out: list[Tensor] = []

    def down(unit: str) -> Tensor:
        return F.linear(below[unit], values[f"side.{unit}.down.weight"], values[f"side.{unit}.down.bias"])

    for stack, place in LAYERS[name].items():
        for layer in range(spec.stacks[stack].layers):
            unit = f"{stack}.{layer}"

            def mix(module: nn.Module, args: Any, kwargs: Any, unit: str = unit, stack: str = stack) -> Any:
                a = args[0] if args else kwargs["hidden_states"]
                a = down(f"{stack}.embed") if unit.endswith(".0") else a
                gate = torch.sigmoid(values[f"side.{unit}.gate"] / 0.1)
                x = gate * a + (1 - gate) * down(unit)
                return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

            narrow.get_submodule(f"{place}.{layer}").register_forward_pre_hook(mix, with_kwargs=True)
    narrow.get_submodule(LAST[name]).register_forward_hook(lambda module, args, output: out.append(_first(output)))
    torch.func.functional_call(narrow, _named(narrow, spec, values), kwargs=fields(spec, given))
    return out[0]


def _named(narrow: nn.Module, spec: ModelSpec, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The side network's parameters by their names in the narrow model."""
    side, there, found = side_spec(spec, 2), dict(narrow.named_parameters()), {}
    inner = [unit for unit in side.units if is_layer(unit) or unit.endswith(".norm")]
    for name in {parameter.name for unit in inner for parameter in inventory(side, unit)}:
        place = next(place for place in family_named(side.family).source(name).names if place in there)
        found[place] = values[f"side.{name}"]
        assert there[place].shape == found[place].shape
    assert {place for place in there if ".layer" in place or ".block" in place} <= set(found)
    return found


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _put(output: Any, hidden: Tensor) -> Any:
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])
