"""Every fine-tuning experiment of PAC on the emulated LAN, in one command. Needs root, as the lab does.

    python -m benchmarks.pac                                    # all of them
    python -m benchmarks.pac --only hours memory                # some
    python -m benchmarks.pac --only hours --models t5_base --layers 2 --again
    python -m benchmarks.pac --only accuracy --glue FOLDER --model FOLDER   # real tasks, a real model
    python -m benchmarks.pac --report                           # tables and pictures of what was measured before

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

from benchmarks.pac.cells import CELLS, HELD_OUT_ROWS, SCORED_CACHED, SCORED_UNCACHED, TABLES, Cell, real
from benchmarks.pac.measure import workshop
from benchmarks.pac.plots import draw
from benchmarks.pac.summary import index
from benchmarks.pac.tables import page
from benchmarks.pages import write_pages
from benchmarks.record import read_records
from benchmarks.resume import Task, key_of, measure_tasks

RESULTS = Path(__file__).parents[1] / "results" / "pac"
IGNORED = {"layers", "rows", "held_out"}
"""What does not make two records those of two cells: how much of a model, and of what it trains on, was taken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line names, then write all tables and pictures; 1 where a cell failed."""
    asked = _parse(argv)
    records = asked.output / "records"
    failed = 0 if asked.report else _measure(chosen(asked), asked, records)
    write_report([*CELLS, *_real(asked)], read_records(records), asked.results)
    return 1 if failed else 0


def chosen(asked: argparse.Namespace) -> list[Cell]:
    """The cells that the command line names, in an order that changes labs seldom."""
    cells = [cell for cell in _real(asked) or CELLS if cell.table in asked.only]
    cells = [cell for cell in cells if not asked.models or cell.model in asked.models]
    if asked.layers:
        cells = [replace(cell, layers=min(asked.layers, cell.layers)) for cell in cells]
    if asked.rows:
        cells = [replace(cell, rows=asked.rows) if cell.kind == "score" and cell.rows else cell for cell in cells]
    return sorted(cells, key=_order)


def gathered(cells: Sequence[Cell], records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The latest record of every cell, by table, cells in their order; tables share scores."""
    latest = {_name_of(record["run"]["parameters"]): record for record in records}
    measured: dict[str, list[dict[str, Any]]] = {}
    for table in TABLES:
        keys = dict.fromkeys(_name_of(cell.parameters) for cell in cells if cell.table == table)
        measured[table] = [latest[key] for key in keys if key in latest]
    if measured["ablation"]:
        shared = (SCORED_UNCACHED, SCORED_CACHED)
        measured["ablation"] += [one for one in measured["accuracy"] if one["run"]["parameters"]["row"] in shared]
    return measured


def write_report(cells: Sequence[Cell], records: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the table and the picture of every experiment of which there is a record."""
    print(write_pages(folder, gathered(cells, records), page, draw, index))


def _measure(cells: Sequence[Cell], asked: argparse.Namespace, folder: Path) -> int:
    with workshop(asked.output, asked.again, asked.attempts, asked.held_out) as shop:
        tasks = [
            Task(_said(cell), {**cell.parameters, "held_out": asked.held_out}, partial(shop.measure, cell))
            for cell in cells
        ]
        return measure_tasks(tasks, "pac", folder, asked.again)


def _order(cell: Cell) -> tuple[Any, ...]:
    """By table and lab."""
    return (TABLES.index(cell.table), cell.kind == "fit", cell.lab, CELLS.index(cell) if cell in CELLS else 0)


def _said(cell: Cell) -> str:
    about = (cell.system, cell.task, f"seed {cell.seed}" if cell.kind == "score" else "", " ".join(cell.lab))
    return f"{cell.table}: {cell.model}, {', '.join(part for part in (cell.row, *about) if part)} ({cell.kind})"


def _name_of(parameters: dict[str, Any]) -> str:
    return key_of({name: value for name, value in parameters.items() if name not in IGNORED})


def _real(asked: argparse.Namespace) -> list[Cell]:
    """The cells of real tasks, where they were asked for."""
    return real(str(asked.model.resolve()), str(asked.glue.resolve())) if asked.glue and asked.model else []


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--models", nargs="+", help="only cells of these models")
    parser.add_argument("--glue", type=Path, help="accuracy: the folder of GLUE's own files; with --model")
    parser.add_argument("--model", type=Path, help="accuracy: the folder of a real model; with --glue")
    parser.add_argument(
        "--attempts", type=int, default=3, help="at a cell, while its devices do not keep their speed (%(default)s)"
    )
    parser.add_argument("--layers", type=int, help="cut models to at most this depth (the width stays)")
    parser.add_argument("--rows", type=int, help="training rows of the made-up tasks (default: what each cell says)")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_ROWS, help="and to score on (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure and profile what was measured before too")
    parser.add_argument("--report", action="store_true", help="measure nothing, only write tables and pictures")
    parser.add_argument("--output", type=Path, default=Path("outputs/pac"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results/pac")
    asked = parser.parse_args(argv)
    if bool(asked.glue) != bool(asked.model):
        parser.error("--glue and --model go together")
    return asked


if __name__ == "__main__":
    sys.exit(main())
