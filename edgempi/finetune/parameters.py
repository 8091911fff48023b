"""The trained tensors of one device, by name and by unit.

Every parameter is made once, by the first unit that asks for it; units that share one (relative tables, a tied token
table) hold the same tensor. Random numbers depend on the seed and the parameter's name alone, so that a stage starts
with what the whole model would start with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Shape, Tuning, trained_shapes

Start = Callable[[torch.Generator], Tensor]
"""Makes the values that a parameter starts with."""


class Trained:
    """Leaf tensors that require gradients; exactly those of `trained_shapes`.

    Args:
        spec: the model, with the head that is fine-tuned.
        units: of this device.
        tuning: the technique.
        dtype: of the parameters.
        seed: of what is random.
    """

    def __init__(
        self, spec: ModelSpec, units: Sequence[str], tuning: Tuning, dtype: torch.dtype, seed: int = 0
    ) -> None:
        self.dtype = dtype
        self._units = {unit: trained_shapes(spec, unit, tuning) for unit in units}
        self.shapes: dict[str, Shape] = {}
        """By name, in the order of the units."""
        for shapes in self._units.values():
            self.shapes |= shapes
        self._seed = seed
        self._made: dict[str, Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def leaf(self, name: str, start: Start) -> Tensor:
        """The parameter of that name.

        Args:
            name: one of `shapes`.
            start: makes its values the first time, from a generator of its own; they are given away.
        """
        if name not in self._made:
            with torch.no_grad():
                value = start(_generator(self._seed, name))
                assert tuple(value.shape) == self.shapes[name], (name, tuple(value.shape), self.shapes[name])
                self._made[name] = value.to(self.dtype).contiguous().requires_grad_()
        return self._made[name]

    @property
    def by_unit(self) -> Mapping[str, dict[str, Tensor]]:
        """The tensors of each unit by name; one that several units share stands under each of them."""
        return {unit: {name: self._made[name] for name in shapes} for unit, shapes in self._units.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, once, in the order of the units."""
        return {name: self._made[name] for name in self.shapes}

    def state(self) -> dict[str, Tensor]:
        """The values by name, detached; they share memory with the parameters."""
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over values in place; what this device does not hold is passed over.

        Raises:
            UserError: a parameter is missing, or has another shape.
        """
        for name, tensor in self.tensors.items():
            if name not in state:
                raise _misfit(f"no {name}", f"it holds {len(self.shapes)} parameters of this technique")
            if state[name].shape != tensor.shape:
                shapes = tuple(state[name].shape), tuple(tensor.shape)
                raise _misfit(f"{name} of shape {shapes[0]}", f"its shape is {shapes[1]}")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state[name])


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _misfit(value: str, rule: str) -> UserError:
    return UserError(
        "trained parameters", value=value, rule=rule, remedy="Use the technique and sizes that they were trained with"
    )
