"""Bytes: what ranks send is the formula's count exactly, what they read is what their shares name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from edgempi.plan.apportion import apportion
from edgempi.plan.messages import sent_bytes
from edgempi.plan.workload import Workload
from mpi.cell import INPUTS, SHARES, Cell, program_of
from mpi.lab import Lab

pytestmark = pytest.mark.mpi

MODELS = ("bert", "gpt2", "llama")  # llama's key-value heads are half of its heads
SENDING = [
    Cell("traffic", model, way, shares, ranks)
    for model in MODELS
    for way in ("data", "tensor", "sequence", "hybrid")
    for ranks, shares in ((2, "even"), (3, "uneven"), (4, "zero"), (4, "even"))
]
SENDING += [Cell("traffic", "gpt2", way, "uneven", 3, wire_dtype="bf16") for way in ("tensor", "hybrid", "sequence")]
PREDICTED = SENDING + [
    Cell("traffic", model, way, shares, ranks, microbatches=microbatches)
    for model in ("t5", "bart", "bert-classifier", "opt-350m")
    for way, shares, ranks, microbatches in (
        ("hybrid", "uneven", 3, 1),
        ("tensor", "even", 2, 2),
        ("sequence", "zero", 4, 1),
        ("pipeline", "even", 2, 2),
        ("hybrid|data", "uneven", 4, 1),
        ("sequence|hybrid", "uneven", 3, 1),
    )
]

SENDING += [
    Cell("traffic", model, "hybrid", shares, ranks, wire_dtype=wire, overlap="ring", subtiles=2)
    for model in ("bert", "llama")
    for ranks, shares in ((2, "even"), (3, "uneven"), (4, "zero"))
    for wire in ("fp32", "int8")
]

READING = [
    Cell("reading", model, "hybrid", shares, ranks)
    for model in ("gpt2", "llama", "qwen2", "t5", "bart", "bert")
    for ranks, shares in ((1, "even"), (3, "uneven"), (4, "zero"))
]
READING += [
    Cell("reading", model, way, "uneven", 2, file=file)
    for model in ("gpt2", "llama", "qwen2")
    for way, file in (
        ("tensor", "float16"),
        ("hybrid", "bfloat16/sharded"),
        ("pipeline", "float32/sharded"),
        ("sequence", "float32"),
    )
]
READ_LIMIT = 1.02


@pytest.mark.parametrize("cell", SENDING, ids=str)
def test_bytes_sent_per_layer(cell: Cell, lab: Lab) -> None:
    spec = lab.spec(cell)
    stack = spec.stacks[spec.last]
    rows, tokens, _ = INPUTS["2x13"]

    def row(columns: int) -> int:  # of one token in all batch rows
        each = {"fp32": 4 * columns, "bf16": 2 * columns, "int8": columns + 2 * (1 if columns % 16 else columns // 16)}
        return rows * each[cell.wire_dtype]

    own = apportion(tokens, SHARES[cell.shares][: cell.ranks])
    equal = apportion(tokens, [1] * cell.ranks)
    formulas = {
        "data": [0] * cell.ranks,
        # A reduce-scatter leaves out the own tile, an all-gather the next device's; a layer has two of each.
        "hybrid": [2 * row(stack.width) * both for both in _ring(own)],
        "tensor": [2 * row(stack.width) * both for both in _ring(equal)],
        # One all-gather, of keys and values.
        "sequence": [row(2 * stack.kv_heads * stack.head_dim) * (tokens - after) for after in (*own[1:], own[0])],
    }
    expected = formulas[cell.way]
    for layer in range(stack.layers):
        sent = [units.get(f"{spec.last}.{layer}", 0) for units in lab.measured(cell)]
        assert sent == expected


@pytest.mark.parametrize("cell", PREDICTED, ids=str)
def test_the_plan_predicts_every_unit_and_handover(cell: Cell, lab: Lab) -> None:
    spec = lab.spec(cell)
    rows, tokens, _ = INPUTS["2x13"]
    both = spec.enc is not None and spec.dec is not None
    # The zoo's decoders of two stacks read half as many tokens, and one more.
    work = Workload(rows, tokens // 2 + 1, tokens) if both else Workload(rows, tokens)
    predicted = sent_bytes(program_of(cell, spec).prefill, spec, work)
    sent = lab.measured(cell)
    assert [_some(units) for units in predicted] == [_some(units) for units in sent]


def _some(units: Mapping[str, int]) -> dict[str, int]:
    return {unit: nbytes for unit, nbytes in units.items() if nbytes}


def _ring(tiles: Sequence[int]) -> list[int]:
    """Tokens that each device sends in one reduce-scatter and one all-gather."""
    total = sum(tiles)
    return [(total - own) + (total - after) for own, after in pairwise((*tiles, tiles[0]))]


def test_the_formula_by_hand() -> None:
    assert _ring((7, 6)) == [13, 13]
    assert _ring((6, 3, 4)) == [17, 19, 16]


@pytest.mark.parametrize("cell", READING, ids=str)
def test_bytes_read(cell: Cell, lab: Lab) -> None:
    for rank, found in enumerate(lab.measured(cell)):
        due = found["named"] + found["headers"]
        assert found["told"] == due, rank
        assert due <= found["counted"] <= READ_LIMIT * due, rank


@pytest.mark.parametrize("cell", [cell for cell in READING if cell.ranks == 1], ids=str)
def test_one_device_reads_each_tensor_once(cell: Cell, lab: Lab) -> None:
    (found,) = lab.measured(cell)
    size = (lab.weights(cell) / "model.safetensors").stat().st_size
    assert found["counted"] == pytest.approx(size, rel=READ_LIMIT - 1)
