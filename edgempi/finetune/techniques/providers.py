"""The model's own weights, those that a technique trains as leaf tensors and the others frozen.

The rooms of the model are built from whatever provides their weights (`models/weights.py`); a technique is another
provider, not another model. This one serves full fine-tuning, and the backbone of every other technique.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor

from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques.initialise import uniform
from edgempi.finetune.techniques.linear import Product, packed_route, plain_route
from edgempi.finetune.techniques.sources import Source, whole_share
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.weights import Weights
from edgempi.ops.linear import Linear
from edgempi.plan.apportion import Span
from edgempi.plan.share import head_name, inventory
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning


def learning_dtype(dtype: torch.dtype) -> torch.dtype:
    """What parameters are trained in where the model computes in `dtype`: fp32 for bf16."""
    return torch.promote_types(dtype, torch.float32)


class Tuned(Weights):
    """The weights of a device that fine-tunes.

    Frozen linears let gradients through to their input. Under `parallel_adapter` none will come, so they are packed,
    but for the head's, which reads what is trained.

    Args:
        source: where weights come from.
        spec: the model, with the head that is fine-tuned.
        units: of this device.
        tuning: the technique.
        dtype: what the model computes in. Where it is trained in full, its weights and its stream are kept in
            `learning_dtype` of it, and only products are computed in it.
        trained: takes the leaf tensors.
    """

    def __init__(
        self,
        source: Source,
        spec: ModelSpec,
        units: Collection[str],
        tuning: Tuning,
        dtype: torch.dtype,
        trained: Trained,
    ) -> None:
        whole, learning = tuning.technique is Technique.full, learning_dtype(dtype)
        self.tuning, self.trained = tuning, trained
        self.kernel, self.learning_kernel = plain_route(dtype).kernel, plain_route(learning).kernel
        self._packs = not tuning.crosses_backbone
        self._compute = dtype if whole else None
        # Weights come from the source: `tensor`, which alone reads a checkpoint, is replaced.
        super().__init__(
            cast(Checkpoint, None), family_named(spec.family), spec, whole_share(spec, units),
            packed_route(dtype) if self._packs else plain_route(dtype), learning if whole else dtype,
        )  # fmt: skip
        self._frozen, self._exact = (source.weights(spec, units, kind) for kind in (self.dtype, learning))
        self._fresh = source.fresh
        shapes = (parameter for unit in units for parameter in inventory(spec, unit))
        self._shapes = {parameter.name: parameter.shape for parameter in shapes}

    def tensor(self, name: str) -> Tensor | None:
        """A parameter: a leaf where it is trained; None where the model has no such parameter."""
        if name in self._shapes and name in self.trained:
            return self.trained.leaf(name, lambda generator: self._start(name, generator))
        return self._frozen.tensor(name)

    def linear(self, *stems: str) -> Linear:
        """One linear layer of the output columns of all `stems`, one after another."""
        if self._packs and not stems[0].startswith("head."):
            return super().linear(*stems)
        return self._product([self.needed(f"{stem}.weight") for stem in stems], [f"{stem}.bias" for stem in stems])

    def head(self) -> Linear:
        """The head's output layer; a tied one reads the token table itself."""
        return self._product([self._rows(head_name(self.spec), self.share.head)], ["head.out.bias"])

    def rows(self, name: str) -> int:
        """How many rows a parameter of the model has."""
        return self._shapes[name][0]

    def drawn(self, name: str, zero: bool = False) -> Tensor:
        """A parameter that the technique adds: a weight at random unless it starts at zero, a bias at zero."""
        shape = self.trained.shapes[name]
        zero = zero or len(shape) == 1
        return self.trained.leaf(name, lambda generator: torch.zeros(shape) if zero else uniform(shape, generator))

    def _product(self, weights: list[Tensor], bias_names: list[str]) -> Product:
        biases = [self.tensor(name) for name in bias_names]
        if weights[0].requires_grad:
            kernel = self.kernel if self._compute else self.learning_kernel
            return Product(weights, biases, kernel, self._compute)
        fused = weights[0] if len(weights) == 1 else torch.cat(weights)
        weights.clear()  # so that one copy is left
        present = [bias for bias in biases if bias is not None]
        return Product([fused], [torch.cat(present) if present else None], self.kernel)

    def _rows(self, name: str, span: Span) -> Tensor:
        # The table itself: a part of a leaf, taken while loading, would get no gradient.
        if name not in self._tables:
            self._tables[name] = self.needed(name)
        return self._tables[name]

    def _start(self, name: str, generator: torch.Generator) -> Tensor:
        if name not in self._fresh:
            return self._exact.needed(name)
        shape = self._shapes[name]
        return torch.zeros(shape) if len(shape) == 1 else uniform(shape, generator)
