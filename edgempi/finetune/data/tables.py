"""Rows of TSV, CSV and parquet files, as fields by column name."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Tally
from edgempi.finetune.data.lines import LONGEST_LINE_BYTES, text_lines

Row = tuple[int, Mapping[str, Any]]
"""A line number (of parquet: a row number) and the fields by column name."""

# The limit of the csv module (128 KiB a field) is one for the whole process; lines are bounded already.
csv.field_size_limit(LONGEST_LINE_BYTES)


def tsv_rows(path: Path, columns: Sequence[str], tally: Tally) -> Iterator[Row]:
    """The rows of a TSV file whose first line names its columns.

    A tab always separates: quotes are part of the text, as in GLUE, where sentences begin with one and never close it.
    Rows with another number of fields than the header are counted and skipped.

    Raises:
        UserError: the file is empty, or lacks one of `columns`.
    """
    lines = text_lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    require_columns(path, header, columns)
    for number, line in lines:
        fields = line.split("\t")
        if not line.strip():
            tally.note("blank line", number)
        elif len(fields) != len(header):
            tally.note("another number of fields than the header", number)
        else:
            yield number, dict(zip(header, fields, strict=True))


def csv_rows(path: Path, columns: Sequence[str], tally: Tally) -> Iterator[Row]:
    """The rows of a comma-separated file whose first line names its columns; fields are quoted by RFC 4180.

    Raises:
        UserError: the file is empty or lacks one of `columns`, or a quote is never closed.
    """
    reader = csv.reader((line for _, line in text_lines(path, keep_ends=True)), strict=True)
    header: list[str] | None = None
    while True:
        began = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {began}", value=str(error), rule="a field with quotes is quoted, its quotes doubled",
                remedy="Correct the quotes of the row that begins here",
            ) from error  # fmt: skip
        if header is None:
            header = fields or [""]
            require_columns(path, header, columns)
        elif fields is None:
            return
        elif not fields:
            tally.note("blank line", began)
        elif len(fields) != len(header):
            tally.note("another number of fields than the header", began)
        else:
            yield began, dict(zip(header, fields, strict=True))


def parquet_rows(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[Row]:
    """The rows of the shards of one parquet table, numbered through from 1.

    Raises:
        UserError: pyarrow is not installed, a file is damaged, or lacks one of `columns`.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"data file {paths[0]}", value="pyarrow is not installed", rule="parquet is read by pyarrow",
            remedy="Run pip install 'edgempi[parquet]', or use the TSV files",
        ) from error  # fmt: skip
    number = 0
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                require_columns(path, file.schema_arrow.names, columns)
                for batch in file.iter_batches(columns=list(columns)):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except (arrow.ArrowException, OSError) as error:
            raise UserError(
                f"data file {path}", value=str(error).splitlines()[0], rule="it is a whole parquet file",
                remedy="Fetch it again, or use the TSV files",
            ) from error  # fmt: skip


def rows_of(path: Path, columns: Sequence[str], tally: Tally) -> Iterator[Row]:
    """The rows of a file by the ending of its name: .tsv, .csv or .parquet."""
    match path.suffix.lower():
        case ".tsv":
            return tsv_rows(path, columns, tally)
        case ".csv":
            return csv_rows(path, columns, tally)
        case ".parquet":
            return parquet_rows([path], columns)
    raise UserError(
        f"data file {path}", value=f"ending {path.suffix or 'none'}", rule="a table ends in .tsv, .csv or .parquet",
        remedy="Rename it by what it holds",
    )  # fmt: skip


def require_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """See that a file names what is needed, each column once.

    Raises:
        UserError: it does not.
    """
    if not any(name.strip() for name in header):
        raise UserError(
            f"{path}, line 1", value="empty", rule="the first line names the columns",
            remedy=f"Put a header before the rows, with {', '.join(columns)}",
        )  # fmt: skip
    lacking = [name for name in columns if name not in header]
    twice = [name for name in columns if header.count(name) > 1]
    if lacking or twice:
        raise UserError(
            f"{path}, line 1", value=f"columns {', '.join(header)[:200]}",
            rule=f"it names {', '.join(columns)}, each once",
            remedy=f"Look at {' and '.join(lacking or twice)}: this may be another task's file, or one without header",
        )  # fmt: skip
