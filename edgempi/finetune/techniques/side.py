"""The side network: a narrow Transformer that reads the frozen backbone's activations and never feeds back.

Source: LST (arXiv 2206.06522), PAC (arXiv 2408.10746). Per stack, with b the backbone's activations and a the side's:

    a = down_embed(b_embed)
    a = Block_i(g a + (1 - g) down_i(b_i)),  g = sigmoid(gate_i / 0.1),  b_i the output of layer i
    hidden = b_last + up(a), or up(a) alone

The blocks are those of `models/block.py` over `side_spec`; cross-attention reads the side encoder's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from edgempi.finetune.network import Network
from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques.initialise import Begin
from edgempi.finetune.techniques.linear import Product, plain_route, product
from edgempi.finetune.techniques.prune import fixed_mixture
from edgempi.finetune.techniques.sources import whole_share
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.units import load_units
from edgempi.models.weights import Weights
from edgempi.ops.linear import Linear
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.training.technique import Tuning, side_spec

TEMPERATURE = 0.1
"""Of the gates, as LST has it."""


class SideWeights(Weights):
    """Provides the side network's own parameters, `side.*`, as those of a model of their own."""

    def __init__(self, spec: ModelSpec, units: Sequence[str], trained: Trained, begin: Begin) -> None:
        route = plain_route(trained.dtype)
        # `tensor`, which alone reads a checkpoint, is replaced.
        nothing = cast(Checkpoint, None)
        super().__init__(nothing, family_named(spec.family), spec, whole_share(spec, units), route, trained.dtype)
        self.kernel, self._trained, self._begin = route.kernel, trained, begin

    def tensor(self, name: str) -> Tensor | None:
        """The parameter `side.{name}`, or None where there is none."""
        full = f"side.{name}"
        if full not in self._trained:
            return None
        shape = self._trained.shapes[full]
        return self._trained.leaf(full, lambda generator: self._begin(name, shape, generator))

    def linear(self, *stems: str) -> Linear:
        """One linear layer of the output columns of all `stems`."""
        weights = [self.needed(f"{stem}.weight") for stem in stems]
        return Product(weights, [self.tensor(f"{stem}.bias") for stem in stems], self.kernel)


class Down:
    """A downsampler: dense, of low rank, or a fixed mixture of columns, which may have been taken before caching."""

    def __init__(self, weights: SideWeights, unit: str, mixture: Tensor | None) -> None:
        name = f"{unit}.down"
        self._mixture, self._kernel, self._dtype = mixture, weights.kernel, weights.dtype
        self._factor: Tensor | None = None
        self._linear: Linear | None = None
        if mixture is None:
            self._factor = weights.tensor(f"{name}.a")
            second = weights.needed(f"{name}.weight" if self._factor is None else f"{name}.b")
            self._linear = Product([second], [weights.tensor(f"{name}.bias")], weights.kernel)

    def __call__(self, b: Tensor) -> Tensor:
        """(B, S, D) to (B, S, n)."""
        if self._linear is None:
            assert self._mixture is not None
            b = b.to(self._dtype)
            return b if b.shape[-1] == self._mixture.shape[1] else b @ self._mixture
        if self._factor is not None:
            b = product(b, self._factor, None, self._kernel)
        return self._linear(b)


class Side:
    """The side network's part on one device.

    Args:
        spec: the backbone.
        units: of this device.
        tuning: its sizes.
        trained: takes the parameters.
        begin: makes what they start with.
    """

    def __init__(self, spec: ModelSpec, units: Sequence[str], tuning: Tuning, trained: Trained, begin: Begin) -> None:
        self.spec = narrow = side_spec(spec, tuning.reduction)
        weights = SideWeights(narrow, units, trained, begin)
        inner = [unit for unit in units if is_layer(unit) or unit.endswith(".norm")]
        stacks = {unit.partition(".")[0] for unit in inner}
        tables = {stack: weights.tensor(f"{stack}.relative.weight") for stack in stacks}
        relative = {stack: table for stack, table in tables.items() if table is not None}
        self.network = Network(narrow, load_units(weights, inner), relative, trained.dtype)
        self._downs: dict[str, Down] = {}
        self._gates: dict[str, Tensor] = {}
        for unit in units:
            if is_layer(unit) or unit.endswith(".embed"):
                wide = spec.stacks[unit.partition(".")[0]].width
                fixed = fixed_mixture(wide, tuning.reduction).to(trained.dtype) if tuning.down_rank == 0 else None
                self._downs[unit] = Down(weights, unit, fixed)
            if is_layer(unit):
                self._gates[unit] = weights.needed(f"{unit}.gate")
        self._up = weights.linear("up") if "head" in units else None

    def enter(self, unit: str, a: Tensor | None, b: Tensor) -> Tensor:
        """What the side block of `unit` reads, given the side state and the backbone's activation there."""
        below = self._downs[unit](b)
        if a is None:
            return below
        gate = torch.sigmoid(self._gates[unit] / TEMPERATURE)
        return below + gate * (a - below)

    def up(self, a: Tensor) -> Tensor:
        """(N, n) to (N, D)."""
        assert self._up is not None, "the device has the head"
        return self._up(a)
