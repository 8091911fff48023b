"""Reading text files line by line, in UTF-8 and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgempi.errors import UserError

LONGEST_LINE_BYTES = 16 << 20
"""A longer line is no row: the file is of another kind, and is not read into memory."""
BOM = b"\xef\xbb\xbf"


def text_lines(path: Path, keep_ends: bool = False) -> Iterator[tuple[int, str]]:
    r"""Each line of a file with its number from 1, without its end (\n or \r\n) unless `keep_ends`.

    Only \n ends a line: the other separators of Unicode (U+2028, U+0085 ...) occur inside sentences. A byte-order
    mark at the beginning is dropped.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or has a line that no row can be.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                if len(raw) > LONGEST_LINE_BYTES:
                    raise UserError(
                        f"{path}, line {number}", value=f"more than {LONGEST_LINE_BYTES >> 20} MiB",
                        rule="a row is a line of text", remedy="Check that this is the right file, and cut such rows",
                    )  # fmt: skip
                raw = raw.removeprefix(BOM) if number == 1 else raw
                yield number, _decoded(raw if keep_ends else _without_end(raw), path, number)
    except OSError as error:
        raise UserError(
            f"data file {path}", value=error.strerror or str(error), rule="it can be read",
            remedy="Correct the path or its permissions",
        ) from error  # fmt: skip


def _without_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}", value=f"byte 0x{raw[error.start]:02x} at place {error.start + 1}",
            rule="data files are UTF-8", remedy="Save the file as UTF-8 (iconv -f latin1 -t utf-8, if it is Latin-1)",
        ) from error  # fmt: skip
    if "\0" in text:
        raise UserError(
            f"{path}, line {number}", value="a NUL character", rule="data files are text in UTF-8",
            remedy="Save the file as UTF-8; UTF-16 and binary files have NULs",
        )  # fmt: skip
    return text
