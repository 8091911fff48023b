"""Measures the cells of the session: one mpirun per rank count, started when the first of its cells is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgempi.plan.spec import ModelSpec
from mpi.cell import Cell
from mpi.launch import run_ranks
from mpi.oracle import Oracle

JOB_LIMIT_S = 200.0


class Lab:
    """Runs cells and keeps what they gave.

    Args:
        cells: all that the session will ask for.
        root: a folder of its own.
    """

    def __init__(self, cells: Sequence[Cell], root: Path) -> None:
        self._cells = cells
        self._root = root
        self._found: dict[tuple[str, str], Any] = {}
        self._ended: dict[int, str] = {}
        self._oracle = Oracle(root / "oracle")

    def measured(self, cell: Cell) -> Any:
        """The result of a cell; fails the test where there is none, with what the ranks said."""
        if cell.ranks not in self._ended:
            self._run(cell.ranks)
        key = (cell.kind, str(cell))
        if key not in self._found:
            pytest.fail(f"not measured: {self._ended[cell.ranks]}", pytrace=False)
        return self._found[key]

    def spec(self, cell: Cell) -> ModelSpec:
        """The model of a cell."""
        self._oracle.prepare([cell])
        return self._oracle.spec(cell)

    def weights(self, cell: Cell) -> Path:
        """The checkpoint of a cell."""
        self._oracle.prepare([cell])
        return self._oracle.weights(cell)

    def _run(self, ranks: int) -> None:
        cells = [cell for cell in self._cells if cell.ranks == ranks]
        self._oracle.prepare(cells)
        order, results = self._root / f"cells{ranks}.json", self._root / f"results{ranks}.jsonl"
        order.write_text(json.dumps([asdict(cell) for cell in cells]))
        words = [str(order), str(results), str(self._oracle.root)]
        ended = run_ranks(ranks, "mpi.ranks_measure", words, JOB_LIMIT_S)
        lines = results.read_text().splitlines() if results.exists() else []
        self._found |= {(kind, name): value for kind, name, value in map(json.loads, lines)}
        how = "its time was up" if ended.status is None else f"it ended with status {ended.status}"
        self._ended[ranks] = f"the job of {ranks} ranks stopped before this cell; {how}\n{ended.err[-4000:]}"
