"""A prompt that streams through pipeline stages in chunks: outputs, tokens and bytes are those of the whole prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgempi.plan.messages import sent_bytes
from edgempi.plan.workload import Workload
from mpi.cell import INPUTS, Cell, program_of
from mpi.lab import Lab
from mpi.test_parity import TOLERANCE

pytestmark = pytest.mark.mpi

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3")
VARIANTS = ("gpt2-base", "gpt2-classifier", "opt-350m", "qwen3-windows")
EVEN, UNEVEN, MANY = "1,1,1,1", "3,1,0,2", ",".join("1" * 20)
MIXED = ("hybrid|data", "tensor|sequence", "sequence|hybrid")


def _cells(kind: str) -> Iterator[Cell]:
    for model in FAMILIES:
        yield Cell(kind, model, "pipeline", "even", 2, chunks=EVEN)
        yield Cell(kind, model, "pipeline", "even", 3, chunks=UNEVEN)
    for way in MIXED:
        yield Cell(kind, "llama", way, "uneven", 3, chunks=UNEVEN, microbatches=2)
    yield Cell(kind, "gpt2", "sequence|hybrid", "zero", 4, chunks=MANY)
    yield Cell(kind, "gpt2", "pipeline", "zero", 4, chunks=MANY)  # a chunk per token; a stage without layers


OUTPUTS = [
    *_cells("parity"),
    *(Cell("parity", model, "pipeline", "even", 2, chunks=chunks) for model in VARIANTS for chunks in (EVEN, UNEVEN)),
    *(Cell("parity", "gpt2-classifier", way, "uneven", 3, chunks=UNEVEN, microbatches=2) for way in MIXED),
    Cell("parity", "bert", "pipeline", "even", 2),  # no chunks: the same stages, and an encoder
]
TOKENS = list(_cells("greedy"))
SENDING = [
    Cell("traffic", model, way, "uneven", 3, chunks=UNEVEN, microbatches=2)
    for model in ("gpt2", "llama", "gpt2-classifier")
    for way in ("pipeline", *MIXED)
]


@pytest.mark.parametrize("cell", OUTPUTS, ids=str)
def test_outputs(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert len(found) >= len(INPUTS)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("cell", TOKENS, ids=str)
def test_tokens(cell: Cell, lab: Lab) -> None:
    for rows, found in lab.measured(cell).items():
        assert found["ranks"] == [found["expected"]] * cell.ranks, rows


@pytest.mark.parametrize("cell", SENDING, ids=str)
def test_bytes_are_predicted(cell: Cell, lab: Lab) -> None:
    spec = lab.spec(cell)
    rows, tokens, _ = INPUTS["2x13"]
    predicted = sent_bytes(program_of(cell, spec).prefill, spec, Workload(rows, tokens))
    sent = [{unit: nbytes for unit, nbytes in units.items() if nbytes} for units in lab.measured(cell)]
    assert [{unit: nbytes for unit, nbytes in units.items() if nbytes} for units in predicted] == sent
