"""What transformers says: checkpoints and expected outputs, made once per session in the pytest process.

The ranks read files only, so that none of them imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgempi.models.source import read_spec
from edgempi.plan.spec import ModelSpec
from models.zoo import FAMILIES, VARIANTS, Model, build, inputs
from mpi.cell import GREEDY_ROWS, GREEDY_TOKENS, INPUTS, NEW_TOKENS, Cell

MODELS = {model.name: model for model in (*FAMILIES, *VARIANTS)}
SHARD_SIZE = "30KB"


class Oracle:
    """A folder per checkpoint: `weights/`, `spec.json`, `expected.safetensors`.

    Args:
        root: where they go.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Make what these cells read, unless it is there."""
        for cell in cells:
            folder = self.root / cell.checkpoint
            if not (folder / "expected.safetensors").exists():
                _make(MODELS[cell.model], cell.file, folder)

    def weights(self, cell: Cell) -> Path:
        """The checkpoint of a cell."""
        return self.root / cell.checkpoint / "weights"

    def spec(self, cell: Cell) -> ModelSpec:
        """The model of a cell."""
        return ModelSpec.from_dict(json.loads((self.root / cell.checkpoint / "spec.json").read_text()))


def _make(model: Model, file: str, folder: Path) -> None:
    dtype, _, sharded = file.partition("/")
    weights = folder / "weights"
    made = build(model, weights, dtype)
    if sharded:
        (weights / "model.safetensors").unlink()
        made.save_pretrained(weights, max_shard_size=SHARD_SIZE)
    spec = read_spec(weights)
    (folder / "spec.json").write_text(json.dumps(spec.as_dict()))
    if dtype != "float32":  # what the file holds, computed in fp32
        made = type(made).from_pretrained(weights, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = {f"{name}/{key}": value for name in INPUTS for key, value in _outputs(model, made, name).items()}
        if spec.generates:
            expected |= {f"greedy/{rows}": _greedy(model, made, spec, rows) for rows in GREEDY_ROWS}
    save_file({name: tensor.clone() for name, tensor in expected.items()}, folder / "expected.safetensors")


def _outputs(model: Model, made: Any, name: str) -> dict[str, Tensor]:
    found = made(**inputs(model, *INPUTS[name]), output_hidden_states=not model.two_stacks)
    names = ("logits", "last_hidden_state", "pooler_output")
    outputs = {key: found[key] for key in names if found.get(key) is not None}
    hidden = found.get("hidden_states") or ()
    return outputs | {f"hidden/{i}": x for i, x in enumerate(hidden)}


def _greedy(model: Model, made: Any, spec: ModelSpec, rows: int) -> Tensor:
    """The plainest decoding there is: the whole sequence anew for every token."""
    prompt = inputs(model, rows, GREEDY_TOKENS, False)["input_ids"]
    text = prompt if spec.enc is None else torch.full((rows, 1), spec.start_token)
    for _ in range(NEW_TOKENS):
        found = made(input_ids=text) if spec.enc is None else made(input_ids=prompt, decoder_input_ids=text)
        text = torch.cat((text, found.logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    return text[:, -NEW_TOKENS:]
