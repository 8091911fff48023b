"""Reduce: from the records of a folder to one Markdown table per experiment and host.

    python -m benchmarks.reduce outputs/benchmarks

Of runs with equal parameters on one host the latest counts. An experiment's module says how a record becomes a row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.record import read_records


def tables(records: Sequence[dict[str, Any]]) -> str:
    """The tables of all records, in Markdown."""
    latest: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for record in records:
        run, meta = record["run"], record["meta"]
        host = f"{meta['cpu']}, {meta['cores']} cores, torch {meta['packages']['torch']}"
        key = json.dumps(run["parameters"], sort_keys=True)
        latest.setdefault((run["experiment"], host), {})[key] = record
    parts = []
    for (experiment, host), runs in latest.items():
        module = import_module(f"benchmarks.{experiment}")
        rows = [module.row(record) for record in sorted(runs.values(), key=module.order)]
        parts.append(f"{module.TITLE} ({host})\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with equal columns as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/benchmarks"))
    print(tables(read_records(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
