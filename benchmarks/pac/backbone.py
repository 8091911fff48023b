"""The small encoder whose fine-tuning is scored: trained here from nothing, on whether two texts belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.checkpoint import write_checkpoint
from benchmarks.measure import isolated
from benchmarks.pac.rows import matching_words, write_matching_task, write_tokenizer
from benchmarks.shapes import SHAPES
from benchmarks.workshop import edgempi

SHAPE = "small"
PAIRS, SEED = 16_000, 1_000
"""Rows to train on, of a seed that no scored task has."""
SETTINGS = (
    "cluster=local1", "technique=full", "system=standalone", "optimizer.rate=1e-3", "optimizer.epochs=16",
    "finetune_data.batch=64", "evaluation.every_steps=null", "evaluation.save_every_steps=null",
)  # fmt: skip
HEAD = "classifier."
"""What the names of the tensors begin with that answer the question; tasks have heads of their own."""


def make_backbone(folder: Path, work: Path, pairs: int = PAIRS) -> None:
    """Train the encoder, and leave it without its head.

    Args:
        folder: for the model; it exists.
        work: a folder for what comes in between.
        pairs: rows to train on.
    """
    start, rows, run = work / "start", work / "pairs.csv", work / "run"
    start.mkdir(parents=True)
    shape = SHAPES[SHAPE]
    isolated(write_checkpoint, start, shape, shape.layers, "fp32", 0, shape.width**-0.5)
    write_tokenizer(start, shape.fields["vocab_size"])
    write_matching_task(rows, pairs, SEED)
    edgempi("finetune", *SETTINGS, *matching_words(rows), f"model.path={start}", f"hydra.run.dir={run}")
    take_head(run / "trained", folder)
    shutil.rmtree(work)


def take_head(trained: Path, folder: Path) -> None:
    """Copy a trained encoder with its tokenizer, as the base model of its family, without the head of its task."""
    tensors = {name: x for name, x in load_file(trained / "model.safetensors").items() if not name.startswith(HEAD)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((trained / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    for name in ("id2label", "label2id"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in trained.glob("tokenizer*.json"):
        shutil.copyfile(path, folder / path.name)
