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


def _column(path: Path, *labels: object) -> Path:
    path.write_text("t,n\n" + "".join(f"{row},{label}\n" for row, label in enumerate(labels)))
    return path


def test_whole_numbers_are_classes_however_they_are_written(tmp_path: Path) -> None:
    path = _column(tmp_path / "rows.csv", "10.0", "2.0", "2", "-1.")
    assert classes_in(path, "n") == ("-1", "2", "10")
    stars = Task("stars", ("t",), classes_in(path, "n"))
    assert [e.label for e in read_table(path, stars, ["t"], "n").examples] == [2, 1, 1, 0]  # type: ignore[union-attr]
    # Classes that are called by numbers are not known by their places too.
    with pytest.raises(UserError, match=r"line 2: label: '0'; it is one of -1, 2, 10"):
        read_table(_column(path, "0"), stars, ["t"], "n")
    with pytest.raises(UserError, match=r"label: '1'; it is one of 1.5, 2.5"):
        read_table(_column(path, "1"), Task("stars", ("t",), ("1.5", "2.5")), ["t"], "n")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["0.5", "3", "4.25"], r"column n: 0.5, 4.25 and the like; .* Set finetune_data.score_range=\[0.5,4.25\]"),
        (["1e-3", "2"], r"score_range=\[0.001,2\], or wider for other rows"),
        (["0.5", "3", "unknown"], r"if they are classes, name them all in finetune_data.labels"),
        ([f"row {row}" for row in range(30)], r"30 different labels in 30 rows; rows of a class share its label"),
        ([*range(1000, 1030), *range(1000, 1025)], r"30 different labels in 55 rows"),
    ],
)
def test_columns_that_hold_no_classes(tmp_path: Path, labels: list[object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        classes_in(_column(tmp_path / "rows.csv", *labels), "n")


def test_columns_that_may_hold_classes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert classes_in(_column(path, *range(12)), "n") == tuple(map(str, range(12)))
    assert classes_in(_column(path, "v1.5", "v2", "2.5"), "n") == ("2.5", "v1.5", "v2")  # names, most of them
    assert len(classes_in(_column(path, *range(151), *range(151)), "n")) == 151
    assert classes_in(_column(path, "nan", "inf"), "n") == ("inf", "nan")


def test_no_number_is_no_label(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"t": ["a", "b", "c", "d"], "n": [1.0, float("nan"), None, 0.0]}), path)
    task = Task("mood", ("t",), classes_in(path, "n"))
    assert task.labels == ("0", "1")
    loaded = read_table(path, task, ["t"], "n")
    assert loaded.examples == (Labelled(("a",), 1), Labelled(("d",), 0))
    assert loaded.tally.rows == {"n is empty": 2}


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
