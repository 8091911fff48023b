"""A whole model in transformers' form: the base model's files, with all weights trained or with LoRA merged into them.

Tensors pass through memory one at a time, in the dtype of the base model's files.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

import edgempi
from edgempi.errors import UserError
from edgempi.finetune.checkpoint.places import Gathered
from edgempi.finetune.checkpoint.tensors import write_tensors
from edgempi.finetune.export.base import OWN_FILE, Base, reads_last_token, whole_folder
from edgempi.finetune.export.card import write_card
from edgempi.finetune.export.names import WORD_HEADS, copies, label_module
from edgempi.models.checkpoint import INDEX, SINGLE, Checkpoint
from edgempi.models.families import Source, family_named
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

KEPT = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files of the base model that come along."""
FACTOR = ".lora.a"


def write_model(
    folder: Path, source: Path, base: Base, spec: ModelSpec, tuning: Tuning, state: Mapping[str, Tensor],
    notes: str = "",
) -> None:  # fmt: skip
    """Write the model.

    Args:
        folder: new, or an earlier export.
        source: the base model's folder.
        base: what it is.
        spec: as it was trained, a new task head included.
        tuning: of technique `full` or `lora`.
        state: the trained parameters, by edgempi's names.
        notes: of data and scores, for the card.

    Raises:
        UserError: the technique's parameters cannot be merged into a model; transformers has no class of this family
            with this head of labels; the folder cannot be written.
    """
    if tuning.technique not in (Technique.full, Technique.lora):
        raise UserError(
            f"export folder {folder}", value=f"technique {tuning.technique}",
            rule="only weights and LoRA become part of a model", remedy="Write it beside its base with write_adapter",
        )  # fmt: skip
    architecture = base.class_with(spec)
    with Checkpoint(source) as checkpoint, ExitStack() as opened, whole_folder(folder) as new:
        files = {
            path: opened.enter_context(safe_open(path, framework="pt"))
            for path in {entry.path for entry in checkpoint.entries.values()}
        }
        changed, added = _places(checkpoint, spec, architecture, state)

        def fetch(name: str) -> Tensor:
            if name in added:
                return state[added[name]]
            tensor = files[checkpoint.entries[name].path].get_tensor(name)
            return _changed(tensor.clone(), changed[name], tuning, state) if name in changed else tensor

        write_tensors(new / SINGLE, Gathered((*checkpoint.entries, *added), fetch))
        for path in sorted({path for pattern in KEPT for path in source.glob(pattern)} - {source / INDEX}):
            shutil.copyfile(path, new / path.name)
        _write_config(new, source, architecture, spec)
        own = {"base": asdict(base), "tuning": asdict(tuning), "edgempi": edgempi.__version__}
        (new / OWN_FILE).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        write_card(new, base, spec, tuning, notes, whole=True)


def _places(
    checkpoint: Checkpoint, spec: ModelSpec, architecture: str, state: Mapping[str, Tensor]
) -> tuple[dict[str, list[tuple[str, Source]]], dict[str, str]]:
    """The tensors of the base that change, each with the parameters in it, and those that a new head adds."""
    changed: dict[str, list[tuple[str, Source]]] = defaultdict(list)
    added: dict[str, str] = {}
    for name in state:
        if name.endswith(".lora.b"):
            continue
        parameter = name.removesuffix(FACTOR) + ".weight" if name.endswith(FACTOR) else name
        at = family_named(spec.family).source(parameter)
        label = name.startswith("head.") and not spec.head.vocabulary
        stem, _, kind = name.rpartition(".")
        names = at.names
        if label:
            own = f"{label_module(spec, stem, architecture)}.{kind}"
            names = (own, *at.names) if stem != "head.out" else (own,)
        found = [
            stored for stored in names if stored in checkpoint.entries and not (label and stored.startswith(WORD_HEADS))
        ]
        if not found:
            assert label, f"{name} is in no file of the base model"
            added[names[0]] = name
            continue
        for stored in dict.fromkeys(copies(spec, parameter, found[0])):
            if stored in checkpoint.entries:
                changed[stored].append((name, at))
    return dict(changed), added


def _changed(
    tensor: Tensor, parameters: list[tuple[str, Source]], tuning: Tuning, state: Mapping[str, Tensor]
) -> Tensor:
    """A tensor of the base with its parameters in their places."""
    for name, at in parameters:
        rows = tensor.t() if at.transposed else tensor
        part = rows.chunk(at.part[1])[at.part[0]]
        if name.endswith(FACTOR):
            a, b = state[name], state[f"{name.removesuffix(FACTOR)}.lora.b"]
            part.copy_(part.to(a.dtype) + tuning.alpha / tuning.rank * (b @ a))
        else:
            part.copy_(state[name].reshape(part.shape))
    return tensor


def _write_config(new: Path, source: Path, architecture: str, spec: ModelSpec) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [architecture]
    if not spec.head.vocabulary and spec.head.rows and len(config.get("id2label") or ()) != spec.head.rows:
        config["id2label"] = {str(label): f"LABEL_{label}" for label in range(spec.head.rows)}
        config["label2id"] = {name: int(label) for label, name in config["id2label"].items()}
    if reads_last_token(spec) and spec.pad_token is not None:
        config["pad_token_id"] = spec.pad_token
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
