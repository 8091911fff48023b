"""Samples: examples as token ids, unpadded, each under a key that says all that its activations depend on.

S: tokens of one stack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Example, Loaded, Tally
from edgempi.plan.spec import ModelSpec

IGNORED = -100
"""The label of a token that is not learned."""
VERSION = 1
"""Of what the templates do; a change of theirs raises it, so that no cache of before is read."""


@dataclass(frozen=True)
class Encoded:
    """What a template makes of an example; the fields are those of `parallel.batch.Batch`, of one row.

    `labels` is a class number, a score, or for each token (of the decoder, where there are two stacks) the id to
    learn: in a decoder-only model unshifted, so that the loss holds place t against label t + 1; in an
    encoder-decoder shifted already, so that place t is held against label t.
    """

    labels: int | float | Sequence[int]
    enc_ids: Sequence[int] | None = None
    dec_ids: Sequence[int] | None = None
    types: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """An unpadded row of int32 ids (S,); labels: int32 (S,) for tokens, int32 () for a class, float32 () for a score.

    Samples of equal content, template and tokenizer have the same key (32 hexadecimal digits).
    """

    key: str
    labels: np.ndarray
    enc_ids: np.ndarray | None = None
    dec_ids: np.ndarray | None = None
    types: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Tokens of both stacks."""
        return sum(len(ids) for ids in (self.enc_ids, self.dec_ids) if ids is not None)

    @property
    def targets(self) -> int:
        """What the sample counts for in a mean loss: its learned tokens, or 1."""
        if self.labels.ndim == 0:
            return 1
        first = 1 if self.enc_ids is None else 0
        return int(np.count_nonzero(self.labels[first:] != IGNORED))


@dataclass(frozen=True)
class Place:
    """Where an example stands, for messages; `note` counts what happened to it."""

    where: str
    note: Callable[[str], None]


class Template(Protocol):
    """Makes token ids of an example. A template is a frozen dataclass: its fields are all that it depends on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """What it is called in a configuration."""
        ...

    def encode(self, example: Example, tokenizer: Any, place: Place) -> list[Encoded]:
        """The rows that an example gives: one as a rule; none where it is left out, which is noted.

        Raises:
            UserError: the template is not for such examples, or the tokenizer lacks what it needs.
        """
        ...


@dataclass(frozen=True)
class Samples:
    """The samples of a file in its order, what was cut or left out, and the fingerprints that the keys hold."""

    samples: tuple[Sample, ...]
    tally: Tally
    template: str
    tokenizer: str


def tokenise(loaded: Loaded, template: Template, tokenizer: Any, spec: ModelSpec | None = None) -> Samples:
    """The samples of a file.

    Args:
        loaded: the file's rows.
        template: makes token ids of them.
        tokenizer: of the model.
        spec: the model, whose tables must have a row for every id; None: nothing is compared.

    Raises:
        UserError: no sample is left, the template cannot be used with these rows or this tokenizer, or the tokenizer is
            not the model's.
    """
    tally, samples = Tally(), []
    prints = template_fingerprint(template), tokenizer_fingerprint(tokenizer)
    for line, example in zip(loaded.lines, loaded.examples, strict=True):
        place = Place(f"{loaded.origin}, line {line}", partial(tally.note, line=line))
        for part, encoded in enumerate(template.encode(example, tokenizer, place)):
            samples.append(_sample(_key(example, part, *prints), encoded))
            if spec is not None:
                _check_ids(samples[-1], spec, tokenizer, place.where)
    if not samples:
        raise UserError(
            loaded.origin, value=f"nothing to learn ({'; '.join(tally.sentences())})",
            rule="at least one row fits the template", remedy="Raise finetune_data.max_tokens, or look at the rows",
        )  # fmt: skip
    return Samples(tuple(samples), tally, *prints)


def _check_ids(sample: Sample, spec: ModelSpec, tokenizer: Any, where: str) -> None:
    for name, stack in spec.stacks.items():
        ids, rows = getattr(sample, f"{name}_ids"), stack.embedding.vocabulary
        parts = [ids, sample.labels] if name == spec.last and sample.labels.ndim else [ids]
        highest = max((int(part.max(initial=0)) for part in parts if part is not None), default=0)
        if highest >= rows:
            raise UserError(
                where, value=f"token {tokenizer.convert_ids_to_tokens(highest)!r} has the id {highest}",
                rule=f"the model has rows for ids below {rows}",
                remedy="Use the tokenizer that belongs to these weights, or weights whose token table was extended",
            )  # fmt: skip
        types = stack.embedding.types
        if types and sample.types is not None and int(sample.types.max(initial=0)) >= types:
            raise UserError(
                where, value=f"token type {int(sample.types.max())}", rule=f"the model has types below {types}",
                remedy="Use the tokenizer that belongs to these weights, or rows of one text",
            )  # fmt: skip


def template_fingerprint(template: Template) -> str:
    """A stable hash of what a template does, truncation included."""
    fields = asdict(template)
    return _digest({"template": type(template).__name__, "version": VERSION, **fields})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A stable hash of vocabulary, rules, special tokens and chat template, wherever the tokenizer lies."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        # Truncation and padding are what the last call asked for, not what the tokenizer is.
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _digest(
        {"class": type(tokenizer).__name__, "rules": rules, "special": special,
         "chat": getattr(tokenizer, "chat_template", None)}
    )  # fmt: skip


def _key(example: Example, part: int, template: str, tokenizer: str) -> str:
    return _digest({"kind": type(example).__name__, **asdict(example), "part": part, "by": [template, tokenizer]})


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def _sample(key: str, encoded: Encoded) -> Sample:
    labels = np.asarray(encoded.labels, dtype=np.float32 if isinstance(encoded.labels, float) else np.int32)
    ids = (encoded.enc_ids, encoded.dec_ids, encoded.types)
    return Sample(key, labels, *(None if part is None else np.asarray(part, dtype=np.int32) for part in ids))
