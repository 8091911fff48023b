"""Parity would see a mistake: each known one, put in on purpose, moves the outputs far beyond the tolerance."""

from __future__ import annotations

import pytest

from mpi.cell import Cell
from mpi.lab import Lab

pytestmark = pytest.mark.mpi

FAR = 1e-2
"""Five hundred times the tolerance of parity."""

CELLS = [
    Cell("parity", model, way, "even", 2, mutation=mutation)
    for mutation, model, way in (
        ("bias added once per rank", "bert", "hybrid"),
        ("bias added once per rank", "gpt2", "tensor"),
        ("padding mask dropped", "bert", "hybrid"),
        ("padding mask dropped", "roberta", "sequence"),
        ("causal mask dropped", "gpt2", "hybrid"),
        ("window dropped", "mistral", "hybrid"),
        ("relative bias dropped", "t5", "tensor"),
        ("position off by one", "gpt2", "hybrid"),
        ("position off by one", "bart", "data"),
        ("rotary angles of a shard from zero", "llama", "sequence"),
        ("residual dropped", "bert", "hybrid"),
        ("residual dropped", "llama", "tensor"),
    )
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_parity_fails(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert max(found.values()) > FAR, found
