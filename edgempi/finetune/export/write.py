"""One way in for all techniques."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.export.base import Base
from edgempi.finetune.export.own import write_own
from edgempi.finetune.export.peft import write_lora
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning


def write_adapter(
    folder: Path, base: Base, spec: ModelSpec, tuning: Tuning, state: Mapping[str, Tensor], notes: str = ""
) -> None:
    """Write what was trained, in the form of its technique; see `write_lora` and `write_own`.

    Raises:
        UserError: all weights were trained, which is a model and no adapter; the folder cannot be written.
    """
    match tuning.technique:
        case Technique.lora:
            write_lora(folder, base, spec, tuning, state, notes)
        case Technique.adapter | Technique.parallel_adapter:
            write_own(folder, base, spec, tuning, state, notes)
        case Technique.full:
            raise UserError(
                f"export folder {folder}", value="technique full", rule="an adapter is written beside its base model",
                remedy="Write the whole model with write_model",
            )  # fmt: skip
