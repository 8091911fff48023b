"""Families: each a translation of a configuration into a ModelSpec, and of our weight names into a checkpoint's.

A family never holds a forward; it is a `Family` with three entries.
"""

from __future__ import annotations

from edgempi.errors import UserError
from edgempi.models.families import bart, bert, distilbert, gpt2, llama, opt, roberta, t5
from edgempi.models.families.base import Family, Source

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        distilbert.FAMILY,
        bert.FAMILY,
        roberta.FAMILY,
        gpt2.FAMILY,
        opt.FAMILY,
        *llama.FAMILIES,
        t5.FAMILY,
        bart.FAMILY,
    )
}


def family_named(name: str) -> Family:
    """The family of a configuration's `model_type`."""
    if name not in FAMILIES:
        raise UserError(
            "model_type", value=name, rule=f"the families are {', '.join(FAMILIES)}",
            remedy="Use a model of one of these families",
        )  # fmt: skip
    return FAMILIES[name]


__all__ = ["FAMILIES", "Family", "Source", "family_named"]
