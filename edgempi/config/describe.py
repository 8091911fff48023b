"""The keys of the schema and what they mean, read from the schema itself, for `--help` and for "perhaps you meant"."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgempi.config import schema


@dataclass(frozen=True)
class Key:
    """One configuration key, with its type as written in the schema and its meaning (empty where the name says it)."""

    name: str
    type: str
    meaning: str


def describe_keys(node: type = schema.Config, prefix: str = "") -> Iterator[Key]:
    """All keys of a schema class, depth first, in the order of the schema."""
    hints = typing.get_type_hints(node)
    meanings = _field_docstrings(node)
    for field in dataclasses.fields(node):
        name, kind = prefix + field.name, hints[field.name]
        # `X | None` has the keys of X, once it is there.
        kind = next(filter(dataclasses.is_dataclass, typing.get_args(kind)), kind) if _is_union(kind) else kind
        if dataclasses.is_dataclass(kind):
            yield from describe_keys(typing.cast(type, kind), f"{name}.")
        else:
            yield Key(name, str(field.type), meanings.get(field.name, ""))
            entry = typing.get_args(kind)[-1:] if typing.get_origin(kind) is dict else ()
            if entry and dataclasses.is_dataclass(entry[0]):
                yield from describe_keys(typing.cast(type, entry[0]), f"{name}.NAME.")


def _is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`Perhaps you meant x`, the nearest of the words, or an empty text where none is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"Perhaps you meant {near[0]}" if near else ""


def _field_docstrings(node: type) -> dict[str, str]:
    # The string that follows a field is invisible at run time; only the source has it.
    (definition,) = ast.parse(inspect.getsource(node)).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            meanings[field.target.id] = inspect.cleandoc(str(ast.literal_eval(text.value)))
    return meanings
