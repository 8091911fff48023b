"""Starts of the side network from the backbone: the largest part of each weight.

LST prunes so (arXiv 2206.06522, section 3.3), but by gradients; a device that cannot train the backbone has its
weights' magnitudes:

    residual columns   one set per stack, by the squares of what its first layer reads from and writes to each
    q and k of a head  by |q| |k| of each row; with rotary positions or norms within heads the pairs of `side_spec`
    v and out          by |v| |out|
    MLP columns        by |up| |down|, and |gate|

Norms and biases follow their columns, the downsamplers start as the choice of columns itself, the way up at zero where
it is added to the backbone. Columns follow from the first layer alone so that no stage need read the whole model: it
reads its own units, the first layer of its stack, and of the encoder's where its layers attend to that.

With fixed downsampling (`down_rank=0`) side columns are mixtures of all: weights are multiplied by the projection
instead of cut.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
from torch import Tensor

from edgempi.finetune.cache.projection import projection
from edgempi.finetune.techniques.columns import Columns, Kept, Mixed
from edgempi.models.weights import Weights
from edgempi.plan.spec import ModelSpec, Stack, is_layer
from edgempi.plan.training.technique import Shape, Tuning

PROJECTION_SEED = 0
"""Of the fixed downsampler: a cache that projects with the same seed holds what it gives."""


@lru_cache(maxsize=4)
def fixed_mixture(wide: int, reduction: int) -> Tensor:
    """The fixed downsampler (D, n) of a stack of `wide` columns; nothing is mixed where all columns are kept."""
    return torch.eye(wide) if reduction == 1 else projection(wide, reduction, PROJECTION_SEED)


class Pruned:
    """Starts of the side network's parameters from the backbone's weights.

    Args:
        weights: plain ones, of the units at hand and of `first_layers`.
        tuning: the side network.
    """

    def __init__(self, weights: Weights, tuning: Tuning) -> None:
        self._weights, self._tuning, self._spec = weights, tuning, weights.spec
        self._columns: dict[str, Columns] = {}
        self._layer: _Layer | None = None

    def __call__(self, name: str, shape: Shape, generator: torch.Generator) -> Tensor:
        """The start of `side.{name}`."""
        if name.startswith("up."):
            return self._up(name, shape)
        stack, unit, rest = name.split(".", 2)
        if unit == "relative":  # as many heads, as far apart
            return self._weights.needed(name)
        if rest.startswith("down."):
            return self._down(stack, rest, shape)
        if rest == "gate":
            return torch.zeros(shape)
        if unit == "norm":
            return _norm(self.columns(stack), self._weights.needed(name), rest)
        layer = f"{stack}.{unit}"
        if self._layer is None or self._layer.name != layer:  # units are built one after the other
            memory = self.columns("enc" if self._spec.stacks[stack].cross else stack)
            self._layer = _Layer(self._weights, layer, self._tuning.reduction, self.columns(stack), memory)
        return self._layer.start(rest)

    def columns(self, stack: str) -> Columns:
        """The side columns of a stack."""
        if stack not in self._columns:
            wide = self._spec.stacks[stack].width
            if self._tuning.down_rank == 0:
                matrix = fixed_mixture(wide, self._tuning.reduction).to(self._weights.dtype)
                self._columns[stack] = Mixed(matrix)
            else:
                scores = self._column_scores(stack)
                self._columns[stack] = Kept(scores, _largest(scores, wide // self._tuning.reduction))
        return self._columns[stack]

    def _column_scores(self, stack: str) -> Tensor:
        spec, name = self._spec.stacks[stack], f"{stack}.0"
        reads = [f"{name}.attention.{part}" for part in "qkv"] + [f"{name}.mlp.up"] + [f"{name}.mlp.gate"] * spec.gated
        writes = [f"{name}.attention.out", f"{name}.mlp.down"]
        read = sum(self._weights.needed(f"{stem}.weight").square().sum(dim=0) for stem in reads)
        written = sum(self._weights.needed(f"{stem}.weight").square().sum(dim=1) for stem in writes)
        return torch.as_tensor(read + written)

    def _down(self, stack: str, rest: str, shape: Shape) -> Tensor:
        start, columns = torch.zeros(shape), self.columns(stack)
        if rest == "down.bias":
            return start
        assert isinstance(columns, Kept)  # a fixed downsampler has no parameters
        index = columns.index
        if rest == "down.weight":
            start[torch.arange(len(index)), index] = 1.0
            return start
        # As many of the columns as the rank goes, the largest.
        best = _largest(columns.scores[index], min(self._tuning.down_rank or 0, len(index)))
        if rest == "down.a":
            start[torch.arange(len(best)), index[best]] = 1.0
        else:
            start[best, torch.arange(len(best))] = 1.0
        return start

    def _up(self, name: str, shape: Shape) -> Tensor:
        if self._tuning.merge or name == "up.bias":
            return torch.zeros(shape)
        columns = self.columns(self._spec.last)
        if isinstance(columns, Kept):  # back to where they came from
            return columns.write(torch.eye(shape[0], dtype=self._weights.dtype)).t()
        return columns.read(torch.eye(shape[0], dtype=self._weights.dtype))


class _Layer:
    """What is kept of one layer, whose weights stay at hand until the next one's turn."""

    def __init__(self, weights: Weights, name: str, reduction: int, stream: Columns, memory: Columns) -> None:
        self.name = name
        self._weights, self._reduction, self._stream, self._memory = weights, reduction, stream, memory
        self._spec: Stack = weights.spec.stacks[name.partition(".")[0]]
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}
        self._read: dict[str, Tensor] = {}

    def start(self, rest: str) -> Tensor:
        """The start of a parameter of the layer, by the rest of its name (`attention.q.weight`)."""
        block, part, kind = rest.split(".")
        value = self._weight(rest)
        if part == "norm":
            return _norm(self._stream, value, kind)
        if block == "mlp":
            return self._of_mlp(part, kind, value)
        if part in ("q_norm", "k_norm"):
            return value[self._fixed]
        reads = self._memory if block == "cross" and part in "kv" else self._stream
        queries, keys = self._kept(block, "qk" if part in "qk" else "vo")
        if part == "out":
            return self._stream.write(value if kind == "bias" else value[:, queries])
        value = value[queries if part == "q" else keys]
        return value if kind == "bias" else reads.read(value)

    def _of_mlp(self, part: str, kind: str, value: Tensor) -> Tensor:
        if part == "down":
            return self._stream.write(value if kind == "bias" else value[:, self._mlp_columns])
        value = value[self._mlp_columns]
        return value if kind == "bias" else self._stream.read(value)

    @cached_property
    def _mlp_columns(self) -> Tensor:
        score = self._weight("mlp.down.weight").square().sum(dim=0)
        for part in ("up", "gate") if self._spec.gated else ("up",):
            score = score * self._stream.read(self._weight(f"mlp.{part}.weight")).square().sum(dim=1)
        return _largest(score, self._spec.mlp_columns // self._reduction)

    @cached_property
    def _fixed(self) -> Tensor:
        """The rows of every head where they are not chosen: every so manieth, of pairs their two halves."""
        size = self._spec.head_dim
        if self._spec.rotary is None:
            return torch.arange(0, size, self._reduction)
        pairs = torch.arange(0, size // 2, self._reduction)
        return torch.cat((pairs, pairs + size // 2))

    def _kept(self, block: str, which: str) -> tuple[Tensor, Tensor]:
        """The rows that stay of the query heads and of the key-value heads, (heads * size / r) each."""
        if f"{block} {which}" not in self._rows:
            G, group, size = self._spec.kv_heads, self._spec.group, self._spec.head_dim
            if which == "qk" and (self._spec.rotary is not None or self._spec.qk_norm):
                kept = self._fixed.expand(G, -1)
            else:
                kept = _largest(self._head_scores(block, which), size // self._reduction)
            heads = torch.arange(G * group)
            queries = heads[:, None] * size + kept[heads // group]
            keys = torch.arange(G)[:, None] * size + kept
            self._rows[f"{block} {which}"] = (queries.flatten(), keys.flatten())
        return self._rows[f"{block} {which}"]

    def _head_scores(self, block: str, which: str) -> Tensor:
        """(key-value heads, size): the product of the squares on both sides, those of a group's queries summed."""
        G, group, size = self._spec.kv_heads, self._spec.group, self._spec.head_dim
        reads = self._memory if block == "cross" else self._stream
        keys = reads.read(self._weight(f"{block}.{'k' if which == 'qk' else 'v'}.weight")).square().sum(dim=1)
        if which == "qk":
            queries = self._stream.read(self._weight(f"{block}.q.weight")).square().sum(dim=1)
        else:
            queries = self._weight(f"{block}.out.weight").square().sum(dim=0)
        return keys.view(G, size) * queries.view(G, group, size).sum(dim=1)

    def _weight(self, rest: str) -> Tensor:
        if rest not in self._read:
            self._read[rest] = self._weights.needed(f"{self.name}.{rest}")
        return self._read[rest]


def first_layers(spec: ModelSpec, units: tuple[str, ...]) -> tuple[str, ...]:
    """What `Pruned` reads beside the units themselves: the layers that columns are chosen by."""
    stacks = {spec.last if unit == "head" else unit.partition(".")[0] for unit in units}
    if any(spec.stacks[unit.partition(".")[0]].cross for unit in units if is_layer(unit)):
        stacks.add("enc")
    return tuple(f"{stack}.0" for stack in spec.stacks if stack in stacks and f"{stack}.0" not in units)


def _norm(columns: Columns, value: Tensor, kind: str) -> Tensor:
    return columns.write(value) if kind == "bias" else columns.gain(value)


def _largest(scores: Tensor, count: int) -> Tensor:
    """The places of the largest along the last dimension, in order; of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
