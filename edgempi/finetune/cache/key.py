"""What cached activations depend on: a key whose digest names the folder that they lie in.

Whatever is part of the key and changes makes another folder, so a stale cache is never read. `differences`
says in which fields two keys part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgempi.errors import UserError

FORMAT = 1
"""Of shards and records; another number is another key."""
FLOATS = ("fp64", "fp32", "bf16")
DTYPES = (*FLOATS, "int8")


@dataclass(frozen=True)
class CacheKey:
    """All that the bytes of a cached sample follow from, beside the sample itself.

    Args:
        model: fingerprint of the backbone's weights.
        tokenizer: fingerprint of the tokenizer.
        template: fingerprint of how a row of data becomes text.
        truncation: the most tokens of each stack, e.g. (128, 8).
        layers: names of the hidden states that a whole sample has, those of all devices together, in order.
        width: columns D of a hidden state.
        dtype: fp64, fp32, bf16 or int8 (with one fp32 scale per token).
        factor: how many times fewer columns are kept, by a fixed projection; 1 keeps all.
        seed: of the projection.
        full: layers among `layers` that are never projected, e.g. the last one, which the head reads.
        compute_dtype: what the backbone computes in.

    Raises:
        UserError: the fields do not fit together.
    """

    model: str
    tokenizer: str
    template: str
    truncation: tuple[int, ...]
    layers: tuple[str, ...]
    width: int
    dtype: str = "bf16"
    factor: int = 1
    seed: int = 0
    full: tuple[str, ...] = ()
    compute_dtype: str = "fp32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise _wrong("dtype", self.dtype, f"one of {', '.join(DTYPES)}", "Set another")
        if self.width < 1 or self.factor < 1 or self.width % self.factor:
            raise _wrong(
                "projection", f"{self.width} columns by {self.factor}", "the factor divides the columns", "Set another"
            )
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise _wrong("layers", ", ".join(self.layers) or "none", "at least one, each once", "Name the layers")
        if set(self.full) - set(self.layers):
            raise _wrong("unprojected layers", ", ".join(self.full), "they are among the layers", "Name others")

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that two different keys do not share."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def tag(self) -> int:
        """The first 8 bytes of the digest, which every record carries."""
        return int(self.digest[:16], 16)

    @property
    def kept_width(self) -> int:
        """Columns of a cached hidden state, of those that are projected."""
        return self.width // self.factor

    def width_of(self, layer: str) -> int:
        """Columns of a layer as it comes out of the cache."""
        return self.width if layer in self.full else self.kept_width

    def as_dict(self) -> dict[str, Any]:
        """In JSON types, with the format's number."""
        return json.loads(json.dumps({"format": FORMAT, **asdict(self)}))

    def to_json(self) -> str:
        """One canonical line."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Difference:
    """A field in which a cache that is there differs from the one that is wanted."""

    field: str
    cached: object
    wanted: object

    def __str__(self) -> str:
        return f"{self.field}: cached with {self.cached}, now {self.wanted}"


def differences(cached: object, wanted: CacheKey) -> tuple[Difference, ...]:
    """How the key that a folder names differs from a key; fields that only one of them has count."""
    if not isinstance(cached, Mapping):
        return (Difference("key", "something unreadable", "a key"),)
    mine = wanted.as_dict()
    names = [*mine, *sorted(set(map(str, cached)) - set(mine))]
    return tuple(
        Difference(name, cached.get(name), mine.get(name)) for name in names if cached.get(name) != mine.get(name)
    )


def sample_id(*token_ids: Iterable[int]) -> int:
    """The identity of a sample by its content: 64 bits of a digest over the token ids of each stack.

    A sample that is edited is thus another one, and one that occurs twice is cached once.
    """
    digest = hashlib.blake2b(digest_size=8)
    for ids in token_ids:
        words = [int(token).to_bytes(8, "little", signed=True) for token in ids]
        digest.update(len(words).to_bytes(8, "little") + b"".join(words))
    return int.from_bytes(digest.digest(), "little")


def _wrong(what: str, value: object, rule: str, remedy: str) -> UserError:
    return UserError(f"activation cache {what}", value=value, rule=rule, remedy=remedy)
