"""Random checkpoints in Hugging Face layout, made from a configuration alone.

transformers names the tensors of its base model (on the meta device, so nothing is allocated); the values are drawn and
written one slice after another, so a model of any size costs a few megabytes to make.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.shapes import Shape

FILE_DTYPES = {"fp32": ("F32", torch.float32), "bf16": ("BF16", torch.bfloat16)}
"""Our dtype names: what safetensors calls them, and torch."""
DEVIATION = 0.02
SLICE = 2**22
"""Elements drawn at a time."""


def write_checkpoint(folder: Path, shape: Shape, layers: int, dtype: str, seed: int = 0) -> None:
    """Write `config.json` and `model.safetensors` of the shape's base model, cut to `layers`.

    Args:
        folder: exists; what it holds of that name is overwritten.
        shape: the model's size.
        layers: how many of its layers.
        dtype: `fp32` or `bf16`, the dtype of the file.
        seed: of the values.
    """
    name, torch_dtype = FILE_DTYPES[dtype]
    config = configuration(shape, layers)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    config.architectures, config.dtype = [type(model).__name__], torch_dtype
    config.save_pretrained(folder)

    tensors = model.state_dict()
    header, offset = {}, 0
    for key, tensor in tensors.items():
        stop = offset + tensor.numel() * torch_dtype.itemsize
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    generator = torch.Generator().manual_seed(seed)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in tensors.items():
            gain = 1.0 if tensor.dim() == 1 and key.endswith("weight") else 0.0
            for start in range(0, tensor.numel(), SLICE):
                values = _draw(min(SLICE, tensor.numel() - start), gain, generator).to(torch_dtype)
                values.view(torch.uint8).numpy().tofile(file)


def configuration(shape: Shape, layers: int) -> Any:
    """The transformers configuration of a shape, cut to `layers`."""
    config = getattr(transformers, shape.config)(**shape.fields)
    # Every configuration class takes these names and maps them to its own.
    config.num_hidden_layers, config.num_attention_heads, config.hidden_size = layers, shape.heads, shape.width
    return config


def _draw(count: int, mean: float, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator).mul_(DEVIATION).add_(mean)
