"""CSV and TSV with named columns, and the lines under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data import lines
from edgempi.finetune.data.examples import Completion, Labelled, Text
from edgempi.finetune.data.jsonl import read_named
from edgempi.finetune.data.task import Task, classes_in, read_table

STARS = Task("stars", ("review",), ("low", "high"))


def test_csv_fields_are_quoted_and_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    text = '\ufeffid,review,mood\r\n1,"good, really\r\n""good""",high\r\n2,bad,0\r\n\r\n3,short\r\n4,fine,high\r\n'
    path.write_bytes(text.encode())
    loaded = read_table(path, STARS, ["review"], "mood")
    assert loaded.examples == (
        Labelled(('good, really\r\n"good"',), 1), Labelled(("bad",), 0), Labelled(("fine",), 1),
    )  # fmt: skip
    assert loaded.lines == (2, 4, 7)
    assert loaded.tally.as_dict() == {
        "blank line": {"rows": 1, "first_lines": [5]},
        "another number of fields than the header": {"rows": 1, "first_lines": [6]},
    }


def test_a_quote_that_is_never_closed_is_named_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('review,mood\nfine,high\n"bad,low\nmore,low\n')
    with pytest.raises(UserError, match=r"rows.csv, line 3: unexpected end of data; a field with quotes"):
        read_table(path, STARS, ["review"], "mood")
    path.write_text('review,mood\n"bad" really,low\n')
    with pytest.raises(UserError, match=r"line 2: .*expected after"):
        read_table(path, STARS, ["review"], "mood")


def test_prompts_and_texts_from_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('ask\ttell\n"why\tso\nhow\t\n')
    loaded = read_named(path, "ask", "tell")
    assert loaded.examples == (Completion('"why', "so"),)
    assert loaded.tally.as_dict() == {"tell is empty": {"rows": 1, "first_lines": [3]}}
    assert read_named(path, None, "ask").examples == (Text('"why'), Text("how"))


def test_class_names_from_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("t,n,w\na,10,b\nb,9,a\nc,9,a\n")
    assert classes_in(path, "n") == ("9", "10")
    assert classes_in(path, "w") == ("a", "b")
    stars = Task("stars", ("t",), classes_in(path, "n"))
    assert [e.label for e in read_table(path, stars, ["t"], "n").examples] == [1, 0, 0]  # type: ignore[union-attr]
    path.write_text("t,n\na,1\n")
    with pytest.raises(UserError, match=r"line 2: label: '1'; it is one of 9, 10"):
        read_table(path, stars, ["t"], "n")
    path.write_text("t,n\na,1\nb,1\n")
    with pytest.raises(UserError, match=r"1 different labels"):
        classes_in(path, "n")


def test_bytes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"review\tmood\nfine\thigh\ncaf\xe9\tlow\n")
    with pytest.raises(UserError, match=r"rows.tsv, line 3: byte 0xe9 at place 4; data files are UTF-8"):
        read_table(path, STARS, ["review"], "mood")
    path.write_bytes("review\tmood\nfine\thigh\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"line 1: byte 0xff"):
        read_table(path, STARS, ["review"], "mood")
    path.write_bytes(b"review\tmood\nfi\0ne\thigh\n")
    with pytest.raises(UserError, match=r"line 2: a NUL character"):
        read_table(path, STARS, ["review"], "mood")
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1 << 20)
    path.write_bytes(b"review\tmood\n" + b"x" * (1 << 20) + b"\thigh\n")
    with pytest.raises(UserError, match=r"line 2: more than 1 MiB"):
        read_table(path, STARS, ["review"], "mood")
    with pytest.raises(UserError, match=r"none.tsv: No such file"):
        read_table(tmp_path / "none.tsv", STARS, ["review"], "mood")
    with pytest.raises(UserError, match=r"Is a directory"):
        (tmp_path / "a.csv").mkdir()
        read_table(tmp_path / "a.csv", STARS, ["review"], "mood")
    with pytest.raises(UserError, match=r"ending .xls"):
        read_table(tmp_path / "a.xls", STARS, ["review"], "mood")


def test_a_long_row_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("review,mood\n" + "word " * 40_000 + ",high\n")
    assert read_table(path, STARS, ["review"], "mood").examples[0].texts[0].count("word") == 40_000  # type: ignore[union-attr]
