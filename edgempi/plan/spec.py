"""ModelSpec: a Transformer as data. One Block reads it; a family is a translation of a configuration into it.

A model is one or two stacks (`enc`, `dec`), each an embedding, layers and possibly a final norm, and a head. Widths
and counts are of the whole model; shares are the plan's. Everything is plain numbers and strings, so a spec travels
to the ranks as JSON and they need neither the configuration nor transformers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the angle of pair i at position p is p * frequencies[i]."""

    frequencies: tuple[float, ...]
    scale: float = 1.0
    """Multiplies cosine and sine (YaRN's attention factor)."""


@dataclass(frozen=True)
class Relative:
    """T5's bucketed relative position bias, shared by all layers of a stack."""

    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True)
class Embedding:
    """How token ids become the first residual stream."""

    vocabulary: int
    width: int
    """Width of the table; where it differs from the stack's, a projection follows."""
    positions: int = 0
    """Rows of a learned position table; 0 where the model has none."""
    position_rule: str = "index"
    """`index`: 0, 1, 2 ...; `mask`: counted over unmasked tokens (OPT); `token`: over tokens that are not padding
    (RoBERTa)."""
    position_offset: int = 0
    types: int = 0
    """Rows of a token type table."""
    norm: bool = False
    scale: float = 1.0
    shared: bool = False
    """Whether the table is the encoder's (T5, BART)."""


@dataclass(frozen=True)
class Stack:
    """A tower of equal layers."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_columns: int
    activation: str
    embedding: Embedding
    gated: bool = False
    norm: str = "layer"
    """`layer` or `rms`."""
    norm_eps: float = 1e-5
    norm_first: bool = True
    """Pre-norm (the norm reads the stream) or post-norm (it writes it)."""
    norm_affine: bool = True
    final_norm: bool = False
    causal: bool = False
    cross: bool = False
    """Whether each layer attends to the encoder's output as well."""
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    attention_scales: tuple[float, ...] = ()
    """The factor on Q K^T of each layer."""
    windows: tuple[int | None, ...] = ()
    """How many tokens back each layer sees (sliding window); None: all."""
    rotary: Rotary | None = None
    relative: Relative | None = None

    @property
    def group(self) -> int:
        """Query heads per key-value head: the quantum in which heads are shared."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Head:
    """What stands on top of the last stack."""

    rows: int = 0
    """Output features (vocabulary or labels); 0: none, the model gives hidden states."""
    select: str = "all"
    """Which tokens it reads: `all`, `first`, or `last` (the last one that is not padding)."""
    dense: bool = False
    """A square linear layer before the output."""
    dense_activation: str = ""
    dense_norm: bool = False
    project_width: int = 0
    """Width of a projection before the output (OPT-350m); 0: none."""
    bias: bool = False
    tied: bool = False
    """The output weight is the embedding table of the last stack."""
    scale: float = 1.0
    vocabulary: bool = False
    """Whether the rows are the vocabulary, and so may be split over it."""


@dataclass(frozen=True)
class ModelSpec:
    """A whole model."""

    family: str
    enc: Stack | None
    dec: Stack | None
    head: Head
    max_tokens: int | None
    """The longest sequence that its positions allow; None: no limit."""
    start_token: int | None = None
    """What an encoder-decoder's decoder begins with."""
    stop_tokens: tuple[int, ...] = ()
    pad_token: int | None = None

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks by name, in order."""
        named = {"enc": self.enc, "dec": self.dec}
        return {name: stack for name, stack in named.items() if stack is not None}

    @property
    def last(self) -> str:
        """The name of the stack that the head reads."""
        return list(self.stacks)[-1]

    @cached_property
    def units(self) -> tuple[str, ...]:
        """All units in order: what a plan's stages cut into runs."""
        names: list[str] = []
        for name, stack in self.stacks.items():
            names += [f"{name}.embed", *(f"{name}.{i}" for i in range(stack.layers))]
            names += [f"{name}.norm"] * stack.final_norm
        return (*names, "head")

    @property
    def generates(self) -> bool:
        """Whether the model writes text token by token."""
        return self.dec is not None and self.head.vocabulary

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `from_dict` on another rank."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """The spec that `as_dict` described."""
        stacks = {name: _stack(data[name]) if data[name] else None for name in ("enc", "dec")}
        rest = {**data, **stacks, "head": Head(**data["head"]), "stop_tokens": tuple(data["stop_tokens"])}
        return cls(**rest)


def stack_of(unit: str) -> str:
    """The stack that a unit belongs to: `dec` of `dec.3`."""
    return unit.partition(".")[0]


def is_layer(unit: str) -> bool:
    """Whether a unit is a layer, and not an embedding, a norm or the head."""
    return unit.partition(".")[2].isdigit()


def _stack(data: dict[str, Any]) -> Stack:
    rotary, relative = data["rotary"], data["relative"]
    return Stack(
        **{
            **data,
            "embedding": Embedding(**data["embedding"]),
            "attention_scales": tuple(data["attention_scales"]),
            "windows": tuple(data["windows"]),
            "rotary": Rotary(tuple(rotary["frequencies"]), rotary["scale"]) if rotary else None,
            "relative": Relative(**relative) if relative else None,
        }
    )
