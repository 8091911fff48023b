"""The trained tensors of a device: made once, drawn by seed and name, and loaded in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques.initialise import uniform
from edgempi.plan.training.technique import Technique, Tuning, trained_shapes
from unit.plan.specs import decoder, rich

TUNING = Tuning(Technique.lora, rank=2)


def _drawn(seed: int = 0, units: tuple[str, ...] = ("dec.0", "dec.1")) -> Trained:
    found = Trained(decoder(), units, TUNING, torch.float32, seed)
    for name, shape in found.shapes.items():
        found.leaf(name, lambda generator, shape=shape: uniform(shape, generator))  # type: ignore[misc]
    return found


def test_draws_follow_from_seed_and_name() -> None:
    found, again, other = _drawn(), _drawn(units=("dec.1",)), _drawn(seed=1)
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor, found.tensors[name])
        assert not torch.equal(tensor, other.tensors[name])
    assert not torch.equal(found.tensors["dec.0.attention.q.lora.a"], found.tensors["dec.1.attention.q.lora.a"])


def test_what_units_share_is_one_tensor() -> None:
    spec = rich()
    found = Trained(spec, spec.units, Tuning(Technique.full), torch.float32)
    made: list[str] = []

    def start(name: str) -> Tensor:
        made.append(name)
        return torch.zeros(found.shapes[name])

    for unit in spec.units:
        for name in trained_shapes(spec, unit, Tuning(Technique.full)):
            found.leaf(name, lambda generator, name=name: start(name))  # type: ignore[misc]
    assert sorted(made) == sorted(found.shapes)
    listed = [(name, tensor) for tensors in found.by_unit.values() for name, tensor in tensors.items()]
    assert len(listed) > len(found.tensors)
    assert all(tensor is found.tensors[name] for name, tensor in listed)
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in found.tensors.values())


def test_values_are_loaded_in_place() -> None:
    found, other = _drawn(units=("dec.1",)), _drawn(seed=1)
    before = dict(found.tensors)
    found.load(other.state())  # what another device holds is passed over
    assert all(found.tensors[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in found.tensors.items())
    assert not any(tensor.requires_grad for tensor in found.state().values())


def test_values_that_do_not_fit_change_nothing() -> None:
    found = _drawn()
    before = {name: tensor.clone() for name, tensor in found.state().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    last = list(state)[-1]
    with pytest.raises(UserError, match=f"trained parameters: no {last}"):
        found.load({name: tensor for name, tensor in state.items() if name != last})
    with pytest.raises(UserError, match=rf"trained parameters: {last} of shape \(1, 2\)"):
        found.load({**state, last: torch.zeros(1, 2)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.state().items())
