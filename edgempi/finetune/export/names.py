"""Where edgempi's parameters stand in a model of transformers: paths of its modules, by family and class."""

from __future__ import annotations

from collections.abc import Collection

from edgempi.errors import UserError
from edgempi.models.families import family_named
from edgempi.plan.share import table_name
from edgempi.plan.spec import ModelSpec, is_layer, stack_of

WORD_HEADS = ("cls.", "lm_head", "vocab_")
"""What modules of heads over the vocabulary are called, of those that may hold one of our head's parameters."""
TIED_BIASES = {"cls.predictions.bias": "cls.predictions.decoder.bias", "lm_head.bias": "lm_head.decoder.bias"}
"""The second name of a bias in classes with a head for masked words."""


def copies(spec: ModelSpec, parameter: str, stored: str) -> tuple[str, ...]:
    """Names of the tensors that hold a parameter where a file repeats it.

    transformers ties them, but only while they are equal.

    Args:
        spec: the model.
        parameter: ours.
        stored: a tensor that holds it.
    """
    sharing = [stack for stack in spec.stacks if table_name(spec, stack) == parameter]
    if not sharing:
        return (stored, TIED_BIASES[stored]) if stored in TIED_BIASES else (stored,)
    source = family_named(spec.family).source
    return tuple(name for stack in sharing for name in source(f"{stack}.embed.tokens.weight").names)


def modules_of(spec: ModelSpec, stem: str) -> tuple[str, ...]:
    """Paths that the module of `dec.3.attention.q` may have: in a class with a head, then in the bare model."""
    return tuple(name.rpartition(".")[0] for name in family_named(spec.family).source(f"{stem}.weight").names)


def module_in(spec: ModelSpec, stem: str, architecture: str) -> str:
    """The path of a layer's module in a class."""
    return modules_of(spec, stem)[-1 if _is_bare(architecture) else 0]


def label_module(spec: ModelSpec, stem: str, architecture: str) -> str:
    """The path of a module of a head of labels or of a pooler, `head.out`, in a class of the family that has it.

    Raises:
        UserError: the family has none.
    """
    found = [name for name in modules_of(spec, stem) if not name.startswith(WORD_HEADS)]
    if not found:
        raise UserError(
            "export of a label head", value=spec.family, rule="transformers has no class of this family with this head",
            remedy="Train with labels as text, or use the trained model with edgempi",
        )  # fmt: skip
    # RoBERTa's head of a text is two linears in a module of their own, that of tokens is one.
    last = _is_bare(architecture) or (stem == "head.out" and not spec.head.dense)
    return found[-1 if last else 0]


def adapted(spec: ModelSpec, part: str) -> tuple[str, ...]:
    """Names of the linears `q` or `v` of all attentions, as LoRA adapts them."""
    found = []
    for unit in filter(is_layer, spec.units):
        places = ("attention", "cross") if spec.stacks[stack_of(unit)].cross else ("attention",)
        found += [f"{unit}.{place}.{part}" for place in places]
    return tuple(found)


def present(spec: ModelSpec, stem: str, modules: Collection[str]) -> str:
    """The path of a module among those of a model.

    Raises:
        UserError: it has none of that name.
    """
    for name in modules_of(spec, stem):
        if name in modules:
            return name
    raise UserError(
        f"model of {spec.family}", value=f"no module {modules_of(spec, stem)[0]}",
        rule=f"the adapter was trained with {stem}",
        remedy="Load the class that the adapter's folder names, with as many labels",
    )  # fmt: skip


def layer_module(path: str) -> str:
    """The path of the layer that a module's path leads through: up to its first number."""
    parts = path.split(".")
    return ".".join(parts[: next(place for place, part in enumerate(parts) if part.isdigit()) + 1])


def _is_bare(architecture: str) -> bool:
    """Whether a class has no head, so that its modules' paths lack the prefix."""
    return architecture.endswith("Model") and "LMHead" not in architecture
