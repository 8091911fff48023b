"""The card of an export: what it was trained from, and how it is used elsewhere."""

from __future__ import annotations

from pathlib import Path

from edgempi.finetune.export.base import Base, reads_last_token
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

WHAT = {
    Technique.lora: "LoRA adapters (rank {rank}, alpha {alpha:g}) beside the queries and values of every attention",
    Technique.adapter: "Adapters, {bottleneck_reduction} times narrower than the model, after attention and MLP",
    Technique.parallel_adapter: "a side network (Parallel Adapters), {reduction} times narrower than the model",
    Technique.full: "all weights",
}
PEFT = """from peft import PeftModel
from transformers import {architecture}

base = {architecture}.from_pretrained({arguments})
model = PeftModel.from_pretrained(base, ".")"""
OWN = """from edgempi.finetune.export import attach
from transformers import {architecture}

model = {architecture}.from_pretrained({arguments}).eval()
attach(model, ".")"""
WHOLE = """from transformers import {architecture}

model = {architecture}.from_pretrained(".")"""


def write_card(folder: Path, base: Base, spec: ModelSpec, tuning: Tuning, notes: str, whole: bool = False) -> None:
    """Write `README.md`.

    Args:
        folder: of the export.
        base: what was tuned.
        spec: as it was trained.
        tuning: how.
        notes: what only the run knows: data, scores, licence.
        whole: whether the export is a model, and not to be put beside one.
    """
    labels = f", num_labels={spec.head.rows}" if spec.head.rows and not spec.head.vocabulary else ""
    if reads_last_token(spec) and spec.pad_token is not None:
        labels += f", pad_token_id={spec.pad_token}"
    version = f", revision={base.revision!r}" if base.revision else ""
    what = WHAT[tuning.technique].format(**vars(tuning))
    beside = PEFT if tuning.technique is Technique.lora else OWN
    how = (WHOLE if whole else beside).format(
        architecture=base.class_with(spec), arguments=f"{base.name!r}{version}{labels}"
    )
    revision = f", revision {base.revision}" if base.revision else ""
    parts = [
        f"# {folder.name.removeprefix('.').removesuffix('.new')}",
        f"This folder holds {'a model with' if whole else ''} {what}, trained with edgempi.".replace("  ", " "),
        f"Base model: {base.name}{revision}; fingerprint of its weights: {base.fingerprint}.",
        f"```python\n{how}\n```",
        *([notes.strip()] if notes.strip() else []),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
