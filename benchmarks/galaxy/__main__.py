"""Every inference experiment of Galaxy on the emulated LAN, in one command. Needs root, as the lab does.

    python -m benchmarks.galaxy                                   # all of them
    python -m benchmarks.galaxy --only homogeneous overlap        # some
    python -m benchmarks.galaxy --only homogeneous --models bert_large --clusters lab_a --again
    python -m benchmarks.galaxy --report                          # tables and pictures of what was measured before

Every cell leaves one JSON record; a record of the same parameters at the same commit is not measured again. Tables and
pictures are written from the latest record of every cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.galaxy.cells import CELLS, TABLES, Cell, gpu_cells
from benchmarks.galaxy.measure import workshop
from benchmarks.galaxy.plots import draw
from benchmarks.galaxy.summary import index
from benchmarks.galaxy.tables import page
from benchmarks.pages import write_pages
from benchmarks.record import read_records
from benchmarks.resume import Task, key_of, measure_tasks

RESULTS = Path(__file__).parents[1] / "results" / "galaxy"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line names, then write all tables and pictures; 1 where a cell failed."""
    asked = _parse(argv)
    records = asked.output / "records"
    cells = chosen(asked)
    failed = 0 if asked.report else _measure(cells, asked, records)
    write_report(every_cell(), read_records(records), asked.results)
    return 1 if failed else 0


def every_cell() -> list[Cell]:
    """All cells that this machine can measure."""
    return [*CELLS, *(gpu_cells() if torch.cuda.is_available() else [])]


def chosen(asked: argparse.Namespace) -> list[Cell]:
    """The cells that the command line names, in an order that changes labs seldom."""
    cells = [
        cell for cell in every_cell()
        if cell.table in asked.only
        and (not asked.models or cell.model in asked.models)
        and (not asked.clusters or cell.cluster in asked.clusters)
        and (asked.fits or not cell.way)
    ]  # fmt: skip
    if asked.layers:
        cells = [cell if cell.way else replace(cell, layers=min(asked.layers, cell.layers)) for cell in cells]
    return sorted(cells, key=_order)


def _order(cell: Cell) -> tuple[Any, ...]:
    """By table, those that decide OOM last; labs are changed seldom."""
    if cell.way:
        return (len(TABLES), cell.cluster, cell.model, cell.way)
    table = "strong" if cell.table == "weak" else cell.table  # in the same labs
    return (TABLES.index(table), cell.cluster, cell.lab, cell.model)


def write_report(cells: Sequence[Cell], records: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the table and the picture of every experiment of which there is a record, cells in their order."""
    latest = {key_of(_same(record["run"]["parameters"])): record for record in records}
    measured: dict[str, list[dict[str, Any]]] = {}
    for table in TABLES:
        keys = [key_of(_same(cell.parameters)) for cell in sorted(cells, key=CELLS_ORDER) if cell.table == table]
        measured[table] = [latest[key] for key in keys if key in latest]
    print(write_pages(folder, measured, page, draw, index))


def CELLS_ORDER(cell: Cell) -> tuple[int, ...]:  # noqa: N802
    """Where a cell stands in its table."""
    same = [i for i, one in enumerate(CELLS) if replace(one, layers=0) == replace(cell, layers=0)]
    return (same[0] if same else len(CELLS),)


def _measure(cells: Sequence[Cell], asked: argparse.Namespace, folder: Path) -> int:
    with workshop(asked.output, asked.repeats, asked.again, asked.attempts) as shop:
        tasks = [
            Task(_name(cell), {**cell.parameters, "repeats": asked.repeats}, partial(shop.measure, cell))
            for cell in cells
        ]
        return measure_tasks(tasks, "galaxy", folder, asked.again)


def _name(cell: Cell) -> str:
    return f"{cell.table}: {cell.model}, {cell.cluster}, {' '.join(cell.lab)} {cell.way or 'timed'}"


def _same(parameters: dict[str, Any]) -> dict[str, Any]:
    """What makes two records those of one cell: not how often it was repeated nor, where it was timed, its depth."""
    ignored = {"repeats"} if parameters["way"] else {"repeats", "layers"}
    return {name: value for name, value in parameters.items() if name not in ignored}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--models", nargs="+", help="only cells of these models")
    parser.add_argument("--clusters", nargs="+", help="only cells of these clusters")
    parser.add_argument("--no-fits", dest="fits", action="store_false", help="leave out the cells that decide OOM")
    parser.add_argument("--repeats", type=int, help="rounds (default: what each experiment says)")
    parser.add_argument(
        "--attempts", type=int, default=3, help="at a cell, while its devices do not keep their speed (%(default)s)"
    )
    parser.add_argument("--layers", type=int, help="cut models to at most this depth (the width stays)")
    parser.add_argument("--again", action="store_true", help="measure and profile what was measured before too")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write tables and pictures")
    parser.add_argument("--output", type=Path, default=Path("outputs/galaxy"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results/galaxy")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
