"""Adapters and side networks as safetensors and JSON with a `peft_type` of their own.

Loaders that know peft's types alone stop at the type, and those that do not read it at the weights, which have a name
of their own too: none loads half of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import edgempi
from edgempi.errors import UserError
from edgempi.finetune.export.base import CONFIG_FILE, Base, task_type, whole_folder
from edgempi.finetune.export.card import write_card
from edgempi.finetune.export.peft import read_config
from edgempi.plan.spec import Head, ModelSpec
from edgempi.plan.training.technique import Technique, Tuning, trained_shapes

PEFT_TYPES = {Technique.adapter: "EDGEMPI_ADAPTER", Technique.parallel_adapter: "EDGEMPI_PARALLEL_ADAPTER"}
WEIGHTS_FILE = "edgempi_adapter.safetensors"
FORMAT = 1
Made = TypeVar("Made", Tuning, Head, Base)


@dataclass(frozen=True)
class Adapter:
    """What a folder holds.

    Attributes:
        base: the model that was tuned.
        tuning: the technique with its sizes.
        head: of labels, that was trained along; None where the head is the model's own.
        state: the trained parameters, by edgempi's names.
    """

    base: Base
    tuning: Tuning
    head: Head | None
    state: dict[str, Tensor]


def write_own(
    folder: Path, base: Base, spec: ModelSpec, tuning: Tuning, state: Mapping[str, Tensor], notes: str = ""
) -> None:
    """Write the folder.

    Args:
        folder: new, or an earlier export.
        base: the model that was tuned.
        spec: as it was trained, a new task head included.
        tuning: of technique `adapter` or `parallel_adapter`.
        state: the trained parameters, by edgempi's names; all of them.
        notes: of data and scores, for the card.

    Raises:
        UserError: the folder cannot be written.
    """
    about = {
        "peft_type": PEFT_TYPES[tuning.technique],
        "task_type": task_type(spec),
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "format": FORMAT,
        "base": asdict(base),
        "tuning": asdict(tuning),
        "head": None if spec.head.vocabulary or not spec.head.rows else asdict(spec.head),
        "edgempi": edgempi.__version__,
    }
    with whole_folder(folder) as new:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, new / WEIGHTS_FILE)
        (new / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        write_card(new, base, spec, tuning, notes)


def read_own(folder: Path) -> Adapter:
    """What `write_own` wrote.

    Raises:
        UserError: it is another kind of adapter, of another format, or damaged.
    """
    about = read_config(folder)
    kind = about.get("peft_type")
    if kind not in PEFT_TYPES.values():
        raise _refused(
            folder, f"peft_type {kind}", f"it is one of {', '.join(PEFT_TYPES.values())}",
            "Load it with peft: PeftModel.from_pretrained(model, folder)",
        )  # fmt: skip
    if about.get("format") != FORMAT:
        raise _refused(folder, f"format {about.get('format')}", f"this edgempi reads {FORMAT}", "Use the edgempi of it")
    try:
        tuning = _sound(Tuning(**{**about["tuning"], "technique": Technique(about["tuning"]["technique"])}))
        head = None if about["head"] is None else _sound(Head(**about["head"]))
        base = _sound(Base(**about["base"]))
        return Adapter(base, tuning, head, load_file(folder / WEIGHTS_FILE))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise _refused(folder, f"{type(error).__name__}: {error}", "it is what was written", "Copy it again") from error


def check_state(folder: Path, spec: ModelSpec, adapter: Adapter) -> None:
    """Check that all parameters of a technique are there, in their shapes, and no others.

    Args:
        folder: that the adapter was read from.
        spec: of the base model, with the adapter's head.
        adapter: what was read.

    Raises:
        UserError: they are not.
    """
    wanted = {name: shape for unit in spec.units for name, shape in trained_shapes(spec, unit, adapter.tuning).items()}
    found = {name: tuple(tensor.shape) for name, tensor in adapter.state.items()}
    if wanted != found:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise _refused(
            folder, f"{name} has shape {found.get(name)}", f"the technique makes it {wanted.get(name)}",
            "Use the base model and the edgempi that it was written with",
        )  # fmt: skip
    for name, tensor in adapter.state.items():
        if not tensor.is_floating_point():
            raise _refused(folder, f"{name} of {tensor.dtype}", "parameters are fractional numbers", "Copy it again")


def _sound(made: Made) -> Made:
    """What was read, if its fields are of their kinds; raises `TypeError` or `ValueError` otherwise."""
    for name, kind in get_type_hints(type(made)).items():
        value, kinds = getattr(made, name), int | float if kind is float else kind
        if not isinstance(value, kinds) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}")
    if isinstance(made, Tuning) and min(made.rank, made.bottleneck_reduction, made.reduction) < 1:
        raise ValueError("a size below one")
    return made


def _refused(folder: Path, value: str, rule: str, remedy: str) -> UserError:
    return UserError(f"adapter {folder}", value=value, rule=rule, remedy=remedy)
