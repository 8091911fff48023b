"""What a family is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgempi.errors import UserError
from edgempi.plan.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """Where a parameter stands in a checkpoint.

    Attributes:
        names: the tensor's name, and older or base-model names to try after it.
        transposed: stored as (in, out), as GPT-2's Conv1D does.
        part: (index, count) where it is one of several equal parts along the output dimension of a fused tensor.
    """

    names: tuple[str, ...]
    transposed: bool = False
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
        name: the `model_type`.
        spec: from a transformers configuration and the checkpoint's tensor names to a ModelSpec.
        source: from one of our parameter names to where it stands.
    """

    name: str
    spec: Callable[[Any, Collection[str]], ModelSpec]
    source: Callable[[str], Source]


def prefixed(prefix: str, name: str) -> tuple[str, ...]:
    """The names under which a base-model tensor may stand: with the task model's prefix, and without."""
    return (prefix + name, name)


def look_up(parameter: str, names: Mapping[str, str]) -> str | None:
    """Translate `attention.q.weight` by a table of stems (`attention.q` -> `self_attn.q_proj`)."""
    stem, _, kind = parameter.rpartition(".")
    return f"{names[stem]}.{kind}" if stem in names else None


def refuse(what: str, value: object, rule: str) -> UserError:
    """A configuration this family cannot run."""
    return UserError(f"configuration {what}", value=value, rule=rule, remedy="Use a checkpoint that keeps to this")


def refuse_class(name: str, classes: str) -> UserError:
    """A model class this family does not run; `classes` lists those it does."""
    return UserError(
        "configuration architectures", value=name or "none", rule=f"the checkpoint was saved from {classes}",
        remedy="Use such a checkpoint, or name its class in config.json where that was left out",
    )  # fmt: skip


def architecture(config: Any) -> str:
    """The class the checkpoint was saved from (`BertForMaskedLM`), or an empty string."""
    return (config.architectures or [""])[0]


def stop_tokens(config: Any) -> tuple[int, ...]:
    """The end-of-sequence ids of a configuration: none, one or several."""
    ids = config.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def tied(config: Any, names: Collection[str], own: str) -> bool:
    """Whether the head shares the token table: the configuration says so and the checkpoint has no other weight.

    transformers does the same: where a tied model's file holds a head of its own, that head counts.
    """
    return bool(config.tie_word_embeddings) and own not in names
