"""Random checkpoints in Hugging Face layout, made from a configuration alone.

transformers names the tensors of its model (on the meta device, so nothing is allocated); the values are drawn and
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
from edgempi.models.families import family_named
from edgempi.plan.spec import ModelSpec

FILE_DTYPES = {"fp32": ("F32", torch.float32), "bf16": ("BF16", torch.bfloat16)}
"""Our dtype names: what safetensors calls them, and torch."""
DEVIATION = 0.02
SLICE = 2**22
"""Elements drawn at a time."""


def write_checkpoint(
    folder: Path, shape: Shape, layers: int, dtype: str, seed: int = 0, deviation: float = DEVIATION
) -> None:
    """Write `config.json` and `model.safetensors` of the shape's model, cut to `layers`.

    Args:
        folder: exists; what it holds of that name is overwritten.
        shape: the model's size.
        layers: how many of its layers, of each stack.
        dtype: `fp32` or `bf16`, the dtype of the file.
        seed: of the values.
        deviation: of the values, around one for the gains of norms and around zero elsewhere.
    """
    name, torch_dtype = FILE_DTYPES[dtype]
    config, tensors = described(shape, layers)
    config.dtype = torch_dtype
    config.save_pretrained(folder)
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
                values = _draw(min(SLICE, tensor.numel() - start), gain, deviation, generator).to(torch_dtype)
                values.view(torch.uint8).numpy().tofile(file)


def described(shape: Shape, layers: int) -> tuple[Any, dict[str, Tensor]]:
    """The configuration of a shape, with its class, and its tensors on the meta device; tied ones once."""
    config = configuration(shape, layers)
    with torch.device("meta"):
        model = getattr(transformers, shape.maker).from_config(config)
    config.architectures = [type(model).__name__]
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return config, {name: tensor for name, tensor in model.state_dict().items() if name in own}


def spec_of(shape: Shape, layers: int) -> ModelSpec:
    """The ModelSpec that a checkpoint of a shape has, without making one."""
    config, tensors = described(shape, layers)
    return family_named(config.model_type).spec(config, tensors.keys())


def configuration(shape: Shape, layers: int) -> Any:
    """The transformers configuration of a shape, cut to `layers`."""
    config = getattr(transformers, shape.config)(**shape.fields)
    # Every configuration class takes these names and maps them to its own.
    config.num_hidden_layers, config.num_attention_heads, config.hidden_size = layers, shape.heads, shape.width
    if shape.decoder:
        setattr(config, shape.decoder, layers)
    return config


def _draw(count: int, mean: float, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator).mul_(deviation).add_(mean)
