"""One pass on this machine's GPU, for Table I: transformers in fp16 on random weights, as the published row was made.

edgempi itself computes on processors; the row says how far a Nano is from a data centre, and nothing about edgempi.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from benchmarks.checkpoint import configuration
from benchmarks.measure import spread
from benchmarks.shapes import SHAPES

WARM_UPS, ROUNDS = 3, 20


def measure_gpu(model: str, layers: int, length: int, device: str = "cuda") -> dict[str, Any]:
    """Time one row of `length` tokens.

    Args:
        model: its name in `benchmarks/shapes.py`.
        layers: how many of its layers.
        length: tokens.
        device: torch's name of it.
    """
    dtype = torch.float16 if device == "cuda" else torch.float32
    config = configuration(SHAPES[model], layers)
    with torch.device(device), torch.inference_mode():
        net = transformers.AutoModel.from_config(config).to(dtype).eval()
        ids = torch.zeros(1, length, dtype=torch.long)
        taken_s = []
        for _ in range(WARM_UPS + ROUNDS):
            _finish(device)
            start = time.perf_counter()
            net(input_ids=ids)
            _finish(device)
            taken_s.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"gpu": name, "latency_s": spread(taken_s[WARM_UPS:]), "dtype": str(dtype).removeprefix("torch.")}


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
