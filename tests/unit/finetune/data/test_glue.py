"""GLUE's files as they are handed out: every layout, and what goes wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Labelled, Loaded
from edgempi.finetune.data.glue import read_glue

MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"


def _write(path: Path, *lines: str, end: str = "\n", begin: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(begin + end.join([*lines, ""]).encode())
    return path


def _pairs(loaded: Loaded) -> list[tuple[tuple[str, ...], object]]:
    assert all(isinstance(example, Labelled) for example in loaded.examples)
    return [(example.texts, example.label) for example in loaded.examples]  # type: ignore[union-attr]


def test_mrpc_with_stray_quotes_a_bom_and_crlf(tmp_path: Path) -> None:
    rows = ['1\t1\t2\t"He left , he said .\tHe said he " left .', "0\t3\t4\tÅsa\u2028rang .\tNo one\x85rang ."]
    _write(tmp_path / "MRPC" / "train.tsv", MRPC, *rows, end="\r\n", begin=b"\xef\xbb\xbf")
    loaded = read_glue(tmp_path, "mrpc", "train")
    assert _pairs(loaded) == [
        (('"He left , he said .', 'He said he " left .'), 1),
        (("Åsa\u2028rang .", "No one\x85rang ."), 0),
    ]
    assert loaded.lines == (2, 3)
    assert loaded.tally.as_dict() == {}


def test_columns_are_found_by_name_in_test_files_too(tmp_path: Path) -> None:
    _write(tmp_path / "mrpc" / "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\ta b\tc d")
    _write(tmp_path / "SST-2" / "test.tsv", "index\tsentence", "0\tfine stuff ")
    assert _pairs(read_glue(tmp_path, "mrpc", "test")) == [(("a b", "c d"), None)]
    loaded = read_glue(tmp_path / "SST-2", "sst2", "test")
    assert _pairs(loaded) == [(("fine stuff ",), None)]
    with pytest.raises(UserError, match=r"labels of .*test.tsv: hidden"):
        loaded.require_labels()


def test_scores_and_class_names(tmp_path: Path) -> None:
    _write(tmp_path / "stsb" / "dev.tsv", STSB, "0\tg\tf\ty\t1\tn\tn\tone\ttwo\t3.800", "1\tg\tf\ty\t2\tn\tn\ta\tb\t5")
    assert _pairs(read_glue(tmp_path, "stsb", "validation")) == [(("one", "two"), 3.8), (("a", "b"), 5.0)]
    lines = ["0\tWho ?\tHe .\tentailment", "1\tWhy ?\tSo .\tnot_entailment"]
    _write(tmp_path / "QNLI" / "train.tsv", "index\tquestion\tsentence\tlabel", *lines)
    assert [label for _, label in _pairs(read_glue(tmp_path, "qnli", "train"))] == [0, 1]


def test_what_is_skipped_is_counted_with_its_lines(tmp_path: Path) -> None:
    lines = ["good\t1", "no label", "", "a\tb\t1", " \t0", "good\t1", "bad\t0"]
    _write(tmp_path / "SST-2" / "train.tsv", "sentence\tlabel", *lines)
    loaded = read_glue(tmp_path, "sst2", "train")
    assert _pairs(loaded) == [(("good",), 1), (("good",), 1), (("bad",), 0)]
    assert loaded.tally.as_dict() == {
        "another number of fields than the header": {"rows": 2, "first_lines": [3, 5]},
        "blank line": {"rows": 1, "first_lines": [4]},
        "sentence is empty": {"rows": 1, "first_lines": [6]},
        "repeats an earlier row (kept)": {"rows": 1, "first_lines": [7]},
    }
    assert loaded.tally.sentences()[0] == "2 rows: another number of fields than the header (line 3, 5)"


def test_microsofts_own_files_are_split_by_the_dev_ids(tmp_path: Path) -> None:
    rows = ["1\t11\t12\ta\tb", "0\t13\t14\tc\td"]
    _write(tmp_path / "msr_paraphrase_train.txt", MRPC, *rows, end="\r\n", begin=b"\xef\xbb\xbf")
    with pytest.raises(UserError, match=r"no dev_ids"):
        read_glue(tmp_path, "mrpc", "train")
    _write(tmp_path / "dev_ids.tsv", "13\t14")
    assert _pairs(read_glue(tmp_path, "mrpc", "train")) == [(("a", "b"), 1)]
    assert _pairs(read_glue(tmp_path, "mrpc", "validation")) == [(("c", "d"), 0)]


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        (
            "sst2",
            ["sentence\tlabel", "good\t2"],
            "train.tsv, line 2: label: '2'; it is one of 0, 1, negative, positive",
        ),
        ("sst2", ["sentence\tlabel", "good\t-1"], "line 2: label: '-1'"),
        ("sst2", ["sentence\tlabel", "good\t1.0"], "line 2: label: '1.0'"),
        ("sst2", ["sentence\tlabel"], "no usable row"),
        ("sst2", ["sentence\tlabel", "\t1"], "no usable row .1 row: sentence is empty .line 2"),
        ("sst2", [], "line 1: empty; the first line names the columns"),
        ("sst2", ["sentence\tmood", "good\t1"], "it names sentence, label, each once. Look at label"),
        ("sst2", ["sentence\tlabel\tlabel", "good\t1\t1"], "each once. Look at label"),
        ("sst2", ["good\t1", "bad\t0"], "Look at sentence and label.*one without header"),
        ("stsb", ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"], "this may be another task's file"),
        ("stsb", [STSB, "0\tg\tf\ty\t1\tn\tn\tone\ttwo\t5.1"], "score: '5.1'; it is a number from 0 to 5"),
        ("stsb", [STSB, "0\tg\tf\ty\t1\tn\tn\tone\ttwo\tnan"], "score: 'nan'"),
        (
            "qnli",
            ["index\tquestion\tsentence\tlabel", "0\ta\tb\tmaybe"],
            "it is one of 0, 1, entailment, not_entailment",
        ),
    ],
)
def test_bad_files_are_named_with_line_and_rule(tmp_path: Path, name: str, lines: list[str], said: str) -> None:
    (tmp_path / "train.tsv").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=said):
        read_glue(tmp_path, name, "train")


def test_every_task_reads_its_official_columns(tmp_path: Path) -> None:
    """The columns of all files as they are handed out, in a CRLF file with a byte-order mark and no last line end."""
    rows = {
        ("mrpc", "MRPC", "train"): (MRPC, '1\t10\t11\t"One .\tTwo " .', (('"One .', 'Two " .'), 1)),
        ("mrpc", "MRPC", "test"): (
            "index" + MRPC.removeprefix("Quality"), "0\t10\t11\tOne\tTwo", (("One", "Two"), None),
        ),
        ("stsb", "STS-B", "train"): (STSB, "0\tmain\tf\t2012\t7\tnone\tnone\tOne\tTwo\t5.000", (("One", "Two"), 5.0)),
        ("stsb", "STS-B", "test"): (
            STSB.removesuffix("\tscore"), "0\tmain\tf\t2012\t7\tnone\tnone\tOne\tTwo", (("One", "Two"), None),
        ),
        ("sst2", "SST-2", "dev"): ("sentence\tlabel", "it 's ` fine ' \t0", (("it 's ` fine ' ",), 0)),
        ("sst2", "SST-2", "test"): ("index\tsentence", "0\tfine", (("fine",), None)),
        ("qnli", "QNLI", "dev"): (
            "index\tquestion\tsentence\tlabel", "0\tWho ?\tHe .\tnot_entailment", (("Who ?", "He ."), 1),
        ),
        ("qnli", "QNLI", "test"): ("index\tquestion\tsentence", "0\tWho ?\tHe .", (("Who ?", "He ."), None)),
    }  # fmt: skip
    for (name, folder, stem), (header, row, expected) in rows.items():
        path = tmp_path / folder / f"{stem}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xef\xbb\xbf" + f"{header}\r\n{row}".encode())
        for place in (tmp_path, path.parent):  # the task's own folder, or the one that holds it
            assert _pairs(read_glue(place, name, {"dev": "validation"}.get(stem, stem))) == [expected]


def test_a_test_set_of_microsofts_own_has_labels(tmp_path: Path) -> None:
    _write(tmp_path / "msr_paraphrase_test.txt", MRPC, "1\t11\t12\ta\tb", end="\r\n", begin=b"\xef\xbb\xbf")
    assert _pairs(read_glue(tmp_path, "mrpc", "test")) == [(("a", "b"), 1)]
    # The identifiers stand in a file of their own, with the same line ends and the same mark.
    _write(tmp_path / "msr_paraphrase_train.txt", MRPC, "1\t11\t12\ta\tb", "0\t13\t14\tc\td")
    _write(tmp_path / "dev_ids.tsv", "11\t12", end="\r\n", begin=b"\xef\xbb\xbf")
    assert _pairs(read_glue(tmp_path, "mrpc", "validation")) == [(("a", "b"), 1)]
    # GLUE's own files count where both are there.
    _write(tmp_path / "train.tsv", MRPC, "0\t1\t2\te\tf")
    assert _pairs(read_glue(tmp_path, "mrpc", "train")) == [(("e", "f"), 0)]


def test_a_file_in_the_wrong_folder_is_noticed(tmp_path: Path) -> None:
    """GLUE's download script once had the addresses of STS-B and QQP the other way round."""
    questions = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    _write(tmp_path / "STS-B" / "train.tsv", questions, "1\t2\t3\tWhy ?\tHow ?\t0")
    with pytest.raises(UserError, match=r"Look at sentence1 and sentence2 and score: this may be another task's file"):
        read_glue(tmp_path, "stsb", "train")
    _write(tmp_path / "QQP" / "train.tsv", STSB, "0\tg\tf\ty\t1\tn\tn\tone\ttwo\t3.800")
    assert _pairs(read_glue(tmp_path / "QQP", "stsb", "train")) == [(("one", "two"), 3.8)]


@pytest.mark.parametrize(
    ("score", "read"),
    [("0", 0.0), ("5.000", 5.0), ("5", 5.0), (" 2.5 ", 2.5), ("0.000", 0.0), ("4.999", 4.999), ("1e0", 1.0)],
)
def test_scores_up_to_their_edges(tmp_path: Path, score: str, read: float) -> None:
    _write(tmp_path / "train.tsv", STSB, f"0\tg\tf\ty\t1\tn\tn\tone\ttwo\t{score}")
    assert _pairs(read_glue(tmp_path, "stsb", "train")) == [(("one", "two"), read)]


@pytest.mark.parametrize("score", ["-0.001", "5.001", "inf", "-1", "three", "4,5"])
def test_scores_beyond_their_edges(tmp_path: Path, score: str) -> None:
    _write(tmp_path / "train.tsv", STSB, f"0\tg\tf\ty\t1\tn\tn\tone\ttwo\t{score}")
    with pytest.raises(UserError, match=rf"train.tsv, line 2: score: '{score}'; it is a number from 0 to 5"):
        read_glue(tmp_path, "stsb", "train")


def test_rows_that_lack_a_field_are_counted(tmp_path: Path) -> None:
    rows = ["0\tg\tf\ty\t1\tn\tn\tone\t\t3.0", "1\tg\tf\ty\t2\tn\tn\ta\tb\t", "2\tg\tf\ty\t3\tn\tn\ta\tb", "\t" * 9]
    _write(tmp_path / "train.tsv", STSB, *rows, "4\tg\tf\ty\t5\tn\tn\ta\tb\t1.0")
    loaded = read_glue(tmp_path, "stsb", "train")
    assert _pairs(loaded) == [(("a", "b"), 1.0)]
    assert loaded.tally.rows == {
        "sentence2 is empty": 1, "score is empty": 1, "another number of fields than the header": 1, "blank line": 1,
    }  # fmt: skip


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def shard(task: str, split: str, **columns: object) -> None:
        (tmp_path / task).mkdir(exist_ok=True)
        parquet.write_table(arrow.table(columns), tmp_path / task / f"{split}-00000-of-00001.parquet")

    floats = arrow.array([3.8, 0.0], arrow.float32())
    shard("stsb", "validation", sentence1=["a", "c"], sentence2=["b", "d"], label=floats, idx=[0, 1])
    (first, second) = _pairs(read_glue(tmp_path, "stsb", "validation"))
    assert (first[1], second[1]) == (pytest.approx(3.8, abs=1e-6), 0.0)
    shard("stsb", "test", sentence1=["a"], sentence2=["b"], label=arrow.array([-1.0], arrow.float32()), idx=[0])
    assert _pairs(read_glue(tmp_path, "stsb", "test")) == [(("a", "b"), None)]
    shard("qnli", "train", question=["Who ?", "Why ?"], sentence=["He .", "So ."], label=[0, 1], idx=[0, 1])
    assert [label for _, label in _pairs(read_glue(tmp_path, "qnli", "train"))] == [0, 1]
    shard("sst2", "train", sentence=["fine ", 'a "b'], label=[1, 0], idx=[0, 1])
    assert _pairs(read_glue(tmp_path, "sst2", "train")) == [(("fine ",), 1), (('a "b',), 0)]
    shard("sst2", "train", sentence=["fine"], label=[2], idx=[0])
    with pytest.raises(UserError, match=r"line 1: label: 2; it is one of 0, 1, negative, positive"):
        read_glue(tmp_path, "sst2", "train")


def test_parquet_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed; .* Run pip install 'edgempi\[parquet\]', or use"):
        read_glue(tmp_path, "sst2", "train")


def test_missing_files_and_names(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"no train rows in .*MRPC or mrpc in it has train.tsv or train-"):
            read_glue(folder, "mrpc", "train")
    with pytest.raises(UserError, match=r"GLUE task: cola"):
        read_glue(tmp_path, "cola", "train")
    with pytest.raises(UserError, match=r"split: dev"):
        read_glue(tmp_path, "mrpc", "dev")


def test_parquet_shards(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def shard(name: str, **columns: list[object]) -> None:
        (tmp_path / "mrpc").mkdir(exist_ok=True)
        parquet.write_table(arrow.table(columns), tmp_path / "mrpc" / name)

    shard("train-00001-of-00002.parquet", sentence1=["c", None], sentence2=["d", "e"], label=[0, 1], idx=[5, 6])
    with pytest.raises(UserError, match=r"1 files; their names speak of 2"):
        read_glue(tmp_path, "mrpc", "train")
    shard("train-00000-of-00002.parquet", sentence1=["a"], sentence2=["b"], label=[1], idx=[4])
    loaded = read_glue(tmp_path, "mrpc", "train")
    assert _pairs(loaded) == [(("a", "b"), 1), (("c", "d"), 0)]
    assert loaded.tally.as_dict() == {"sentence1 is empty": {"rows": 1, "first_lines": [3]}}
    shard("test-00000-of-00001.parquet", sentence1=["a"], sentence2=["b"], label=[-1], idx=[0])
    assert _pairs(read_glue(tmp_path, "mrpc", "test")) == [(("a", "b"), None)]
    shard("validation-00000-of-00001.parquet", sentence1=["a"], sentence2=["b"], label=[-1], idx=[0])
    with pytest.raises(UserError, match=r"line 1: label: -1"):
        read_glue(tmp_path, "mrpc", "validation")
    (tmp_path / "mrpc" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match=r"whole parquet file"):
        read_glue(tmp_path, "mrpc", "validation")
    shard("validation-00000-of-00001.parquet", text=["a"], label=[1])
    with pytest.raises(UserError, match=r"Look at sentence1 and sentence2"):
        read_glue(tmp_path, "mrpc", "validation")
