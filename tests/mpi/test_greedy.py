"""The tokens that greedy decoding writes, on every rank, under every way of sharing."""

from __future__ import annotations

import pytest

from mpi.cell import Cell
from mpi.lab import Lab

pytestmark = pytest.mark.mpi

MODELS = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "t5", "bart")
WAYS = ("data", "tensor", "sequence", "hybrid", "heads", "pipeline")
CELLS = [Cell("greedy", model, "single", "even", 1) for model in MODELS]
CELLS += [
    Cell("greedy", model, way, "zero" if ranks == 4 else "even", ranks)
    for model in MODELS
    for way in WAYS
    for ranks in (2, 3, 4)
]
CELLS += [Cell("greedy", model, "hybrid", "uneven", 3, decode="hybrid") for model in MODELS]
CELLS += [Cell("greedy", "llama", "hybrid|data", "uneven", 3, microbatches=2)]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_tokens(cell: Cell, lab: Lab) -> None:
    for rows, found in lab.measured(cell).items():
        assert found["ranks"] == [found["expected"]] * cell.ranks, rows
