"""Equal to transformers: every family, every way of sharing, one to five ranks, even, uneven and empty shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.zoo import FAMILIES, VARIANTS
from mpi.cell import INPUTS, Cell
from mpi.lab import Lab

pytestmark = pytest.mark.mpi

TOLERANCE = 2e-5
"""Of an output's largest magnitude, in fp32."""
BF16_TOLERANCE = 4e-2
INT8_TOLERANCE = 0.15
"""The zoo is a few columns wide, so that a rounding weighs more than in a model of use."""
ONE_STAGE = ("data", "tensor", "sequence", "hybrid")
MIXED = ("hybrid|data", "tensor|sequence", "sequence|hybrid")


def _family_cells() -> Iterator[Cell]:
    for model in FAMILIES:
        for way in ("single", *ONE_STAGE):
            yield Cell("parity", model.name, way, "even", 1)
        for ranks in (2, 3, 4, 5):
            if ranks < 5 or model.name == "llama":  # more ranks than key-value heads, and than tokens
                yield from _shared(model.name, ranks)


def _shared(model: str, ranks: int) -> Iterator[Cell]:
    for way in ONE_STAGE:
        for shares in ("even", "uneven", "zero"):
            yield Cell("parity", model, way, shares, ranks)
    for shares in ("even", "zero"):
        yield Cell("parity", model, "pipeline", shares, ranks, microbatches=2)
        if ranks >= 3:
            yield from (Cell("parity", model, way, shares, ranks, microbatches=2) for way in MIXED)


def _variant_cells() -> Iterator[Cell]:
    for model in VARIANTS:
        yield Cell("parity", model.name, "single", "even", 1)
        yield Cell("parity", model.name, "hybrid", "uneven", 2)
        yield Cell("parity", model.name, "tensor", "even", 2)


def _form_cells() -> Iterator[Cell]:
    """What does not depend on the family: how files are stored, microbatches, column blocks."""
    for model in ("gpt2", "llama", "qwen2"):
        for file in ("float16", "bfloat16", "float32/sharded", "bfloat16/sharded"):
            yield Cell("parity", model, "hybrid", "uneven", 2, file=file)
    for way in ("data", "hybrid", "tensor"):
        yield Cell("parity", "t5", way, "uneven", 2, microbatches=3)
        yield Cell("parity", "llama", way, "uneven", 2, column_blocks=3)
        yield Cell("parity", "bert", way, "even", 2, column_blocks=4)


def _overlapped_cells() -> Iterator[Cell]:
    """Communication under computation: every family in rings of three, and each mode at every rank count."""
    for model in FAMILIES:
        yield Cell("parity", model.name, "hybrid", "uneven", 3, overlap="ring", subtiles=2, column_blocks=3)
        yield Cell("parity", model.name, "hybrid", "even", 2, overlap="icollective", subtiles=2)
    for model in ("bert", "gpt2", "llama", "t5", "bart"):
        for ranks in (2, 3, 4):
            for shares in ("even", "uneven", "zero"):
                yield Cell("parity", model, "hybrid", shares, ranks, overlap="ring", subtiles=3)
        yield Cell("parity", model, "hybrid", "zero", 4, overlap="icollective", subtiles=2, column_blocks=2)
    for model in VARIANTS:
        yield Cell("parity", model.name, "hybrid", "uneven", 2, overlap="ring", subtiles=2)
    for model in FAMILIES:
        yield Cell("parity", model.name, "heads", "uneven", 3, overlap="ring", subtiles=2)
    for model in ("bert", "gpt2", "t5"):
        yield from (
            Cell("parity", model, "heads", shares, 4, overlap="ring", subtiles=3) for shares in ("even", "zero")
        )
        yield Cell("parity", model, "heads", "zero", 3, overlap="icollective", subtiles=2, column_blocks=2)
        yield Cell("parity", model, "heads", "uneven", 2)
    yield Cell("parity", "gpt2", "hybrid|data", "uneven", 4, microbatches=2, overlap="ring", subtiles=2)
    yield Cell("parity", "llama", "hybrid", "even", 2, overlap="auto", subtiles=2)


CELLS = [*_family_cells(), *_variant_cells(), *_form_cells(), *_overlapped_cells()]
HIDDEN = [
    Cell("hidden", model, way, "uneven", 3) for model in ("gpt2", "llama", "bert") for way in ("hybrid", "sequence")
]
IN_BF16 = {"weight_dtype": "bf16", "wire_dtype": "bf16"}
BF16 = [Cell("parity", model, "hybrid", "even", 2, **IN_BF16) for model in ("gpt2", "bert")]
BF16 += [Cell("parity", "llama", "tensor", "even", 2, wire_dtype="bf16")]
BF16 += [Cell("parity", "gpt2", "hybrid", "uneven", 3, wire_dtype="bf16", overlap="ring", subtiles=2)]
INT8 = [
    Cell("parity", model, way, "uneven", 3, wire_dtype="int8", overlap=overlap, subtiles=2)
    for model in ("bert", "gpt2", "llama", "bart")
    for way, overlap in (
        ("hybrid", "ring"),
        ("hybrid", "icollective"),
        ("hybrid", "blocking"),
        ("tensor", "blocking"),
        ("sequence", "blocking"),
        ("pipeline", "blocking"),
    )
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_outputs(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert found
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("cell", HIDDEN, ids=str)
def test_the_stream_after_every_unit(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert len(found) == len(INPUTS) * 4  # the embedding and three layers
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("cell", BF16, ids=str)
def test_bfloat16_is_close_and_is_used(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert TOLERANCE < max(found.values()) <= BF16_TOLERANCE, found


@pytest.mark.parametrize("cell", INT8, ids=str)
def test_int8_travels_with_a_rounding_that_shows_and_stays_small(cell: Cell, lab: Lab) -> None:
    found = lab.measured(cell)
    assert TOLERANCE < max(found.values()) <= INT8_TOLERANCE, found


@pytest.mark.parametrize("cell", [Cell("imports", "llama", "hybrid", "even", 2)], ids=str)
def test_ranks_import_none_of_the_heavy_packages(cell: Cell, lab: Lab) -> None:
    assert lab.measured(cell) == [[], []]
