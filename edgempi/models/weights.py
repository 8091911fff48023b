"""A rank's weights: just the slices its share names, each in the form the op that reads it prefers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.models.checkpoint import DTYPES, Checkpoint, check_dtype
from edgempi.models.families import Family, Source
from edgempi.ops.linear import PACKED, UNPACKED, Linear, Route
from edgempi.ops.norm import Norm
from edgempi.plan.apportion import Span
from edgempi.plan.share import DeviceShare, Holding, head_name, holdings, inventory, table_name
from edgempi.plan.spec import ModelSpec, Stack

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The names that a configuration and a plan use."""


def find(checkpoint: Checkpoint, source: Source, holding: Holding) -> str:
    """The checkpoint's name of a parameter, its shape checked.

    Raises:
        UserError: the checkpoint lacks it, or holds it in another shape than the configuration says.
    """
    parameter = holding.parameter
    name = next((name for name in source.names if name in checkpoint.entries), None)
    if name is None:
        raise UserError(
            f"checkpoint {checkpoint.folder}", value=f"no tensor {source.names[0]}",
            rule=f"config.json describes a model with {parameter.name}",
            remedy="Use the config.json that belongs to these weights",
        )  # fmt: skip
    expected = list(parameter.shape)
    expected[0] *= source.part[1]
    if source.transposed:
        expected.reverse()
    found = list(checkpoint.entries[name].shape)
    if found not in (expected, [1, *expected]):  # BART keeps a bias as (1, N)
        raise UserError(
            f"checkpoint tensor {name}", value=f"shape {found}",
            rule=f"config.json makes it {expected}", remedy="Use the config.json that belongs to these weights",
        )  # fmt: skip
    return name


def check_weights(checkpoint: Checkpoint, family: Family, spec: ModelSpec) -> None:
    """Check, before any rank starts, that a checkpoint holds the model that its configuration describes.

    Raises:
        UserError: a weight is missing, has another shape, a dtype that is no weight's, or there are more layers.
    """
    for unit in spec.units:
        for parameter in inventory(spec, unit):
            source = family.source(parameter.name)
            entry = checkpoint.entries[find(checkpoint, source, Holding(parameter, (0, 0)))]
            check_dtype(entry)
    for name, stack in spec.stacks.items():
        last, beyond = f".{stack.layers - 1}.", f".{stack.layers}."
        known = family.source(f"{name}.{stack.layers - 1}.mlp.down.weight").names
        extra = [other for other in (n.replace(last, beyond) for n in known) if other in checkpoint.entries]
        if extra:
            raise UserError(
                f"checkpoint {checkpoint.folder}", value=f"has {extra[0]}",
                rule=f"config.json describes {stack.layers} layers",
                remedy="Use the config.json that belongs to these weights",
            )  # fmt: skip


def bytes_to_read(checkpoint: Checkpoint, family: Family, held: Iterable[Holding]) -> int:
    """What a rank will read of the files' data for these holdings, in bytes of the files' own dtypes."""
    total = 0
    for holding in held:
        entry = checkpoint.entries[find(checkpoint, family.source(holding.parameter.name), holding)]
        total += holding.elements * DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else 0
    return total


class Weights:
    """Loads on demand; a unit asks for what it is made of.

    Args:
        checkpoint: open while units are built.
        family: where parameters stand in it.
        spec: the model.
        share: what this device owns.
        route: how linears keep their weights.
        dtype: the dtype that weights are kept and computed in.
        column_blocks: see `Linear`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        spec: ModelSpec,
        share: DeviceShare,
        route: Route,
        dtype: torch.dtype,
        column_blocks: int = 1,
    ) -> None:
        self.spec, self.share, self.dtype = spec, share, dtype
        self._checkpoint, self._family = checkpoint, family
        self._route, self._column_blocks = route, column_blocks
        self._held = holdings(share, spec)
        self._tables: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor | None:
        """The slice of a parameter that this device owns, or None where the model has no such parameter."""
        if name not in self._held:
            return None
        holding = self._held[name]
        source = self._family.source(name)
        stored = find(self._checkpoint, source, holding)
        entry = self._checkpoint.entries[stored]
        index, count = source.part
        start, stop = holding.span
        dim = holding.parameter.dim
        if dim == 0:
            shift = index * holding.parameter.shape[0]
            start, stop = start + shift, stop + shift
        if len(entry.shape) != len(holding.parameter.shape):  # a bias saved as (1, N)
            return self._checkpoint.read(stored, self.dtype, len(entry.shape) - 1, (start, stop)).flatten()
        if count > 1 and dim == 1:  # no fused tensor is split along its inputs
            raise AssertionError(name)
        if source.transposed:
            return self._checkpoint.read(stored, self.dtype, 1 - dim, (start, stop)).t().contiguous()
        return self._checkpoint.read(stored, self.dtype, dim, (start, stop))

    def needed(self, name: str) -> Tensor:
        """A parameter that must be there."""
        tensor = self.tensor(name)
        assert tensor is not None, name
        return tensor

    def linear(self, *stems: str) -> Linear:
        """One linear layer of the output columns of all `stems`, one after another (fused Q, K, V)."""
        weights = [self.needed(f"{stem}.weight") for stem in stems]
        biases = [self.tensor(f"{stem}.bias") for stem in stems]
        present = [bias for bias in biases if bias is not None]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        weights.clear()  # so that packing leaves one copy
        return Linear(weight, torch.cat(present) if present else None, self._route, self._column_blocks)

    def norm(self, stem: str, stack: Stack, width: int | None = None, kind: str | None = None) -> Norm:
        """A normalisation with the stack's kind and epsilon."""
        weight, bias = self.tensor(f"{stem}.weight"), self.tensor(f"{stem}.bias")
        return Norm(kind or stack.norm, width or stack.width, stack.norm_eps, weight, bias)

    def table(self, stack: str) -> Tensor:
        """The rows of a stack's token table that this device looks up."""
        return self._rows(table_name(self.spec, stack), self.share.embedding)

    def head(self) -> Linear:
        """The head's output layer; it reads the token table itself where the device keeps that anyway."""
        name = head_name(self.spec)
        bias = self.tensor("head.out.bias")
        if name not in self._tables:
            return Linear(self.needed(name), bias, self._route, self._column_blocks)
        plain = UNPACKED if self._route is PACKED else self._route
        return Linear(self._rows(name, self.share.head), bias, plain, self._column_blocks)

    def _rows(self, name: str, span: Span) -> Tensor:
        if name not in self._tables:
            self._tables[name] = self.needed(name)
        start, stop = (edge - self._held[name].span[0] for edge in span)
        return self._tables[name][start:stop]
