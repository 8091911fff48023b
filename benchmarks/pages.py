"""An experiment's folder of results: a page and a picture for every table, and an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_pages(
    folder: Path,
    measured: Mapping[str, Sequence[Record]],
    page: Callable[[str, Sequence[Record]], str],
    draw: Callable[[str, Sequence[Record], Path], bool],
    index: Callable[[Mapping[str, Sequence[Record]]], str],
) -> Path:
    """Write all pages; returns the index.

    Args:
        folder: made if it is not there.
        measured: the records of each table; those without any are left out.
        page: makes a table's text.
        draw: draws its picture, and says whether there was anything to draw.
        index: makes the first page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {table: records for table, records in measured.items() if records}
    for table, records in there.items():
        text, picture = page(table, records), folder / f"{table}.png"
        if draw(table, records, picture):
            text += f"\n![{table}]({picture.name})\n"
        (folder / f"{table}.md").write_text(text)
    (folder / "README.md").write_text(index(there))
    return folder / "README.md"
