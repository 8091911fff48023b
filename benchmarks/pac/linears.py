"""How much longer torch's stock products take than those that edgempi picks, for one layer of a backbone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.checkpoint import configuration
from benchmarks.measure import paired, ratios, spread
from benchmarks.pac.published import LENGTH
from benchmarks.shapes import SHAPES
from edgempi.ops.linear import Linear, pick_route

LAYERS = 3
"""So many sets of weights in turn, that none stays in a cache."""
ROUNDS = 7


def measure_linears(model: str, rows: int = 4) -> dict[str, Any]:
    """Time the products of an encoder's layers on `rows` rows of `LENGTH` tokens, in this process, by one thread.

    Returns:
        Quantiles of seconds of a layer, packed and stock, and of their ratio; the route that was picked.
    """
    torch.set_num_threads(1)
    config = configuration(SHAPES[model], 1)
    width, columns = config.hidden_size, getattr(config, "d_ff", None) or config.encoder_ffn_dim
    shapes = ((3 * width, width), (width, width), (columns, width), (width, columns))
    weights = [torch.randn(n, k) for _ in range(LAYERS) for n, k in shapes]
    inputs = {k: torch.randn(rows * LENGTH, k) for k in {k for _, k in shapes}}
    route = pick_route(torch.float32)
    packed = [Linear(weight.clone(), None, route) for weight in weights]

    def ours() -> None:
        for linear in packed:
            linear(inputs[linear.inputs])

    def stock() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    with torch.inference_mode():
        times = paired({"packed": ours, "stock": stock}, ROUNDS)
    taken = {name: [seconds / LAYERS for seconds in one.cpu_s] for name, one in times.items()}
    return {
        "packed_s": spread(taken["packed"]),
        "stock_s": spread(taken["stock"]),
        "stock_over_packed": spread(ratios(taken["stock"], taken["packed"])),
        "route": route.name,
    }
