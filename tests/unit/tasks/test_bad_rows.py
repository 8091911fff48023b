"""What is wrong with rows, as `edgempi finetune` says it: one line with place, rule and remedy, before any rank starts.

The command runs in this process, which it would only leave for good rows.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgempi.cli import main
from edgempi.config.finetune import FinetuneDataConfig, SourceName
from edgempi.tasks.finetune import prepare
from models.worded import build_worded
from mpi.finetune import job

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
TABLE = ("finetune_data.source=table", "finetune_data.texts=[text]", "finetune_data.label=label")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with tokenizers."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("bert", "llama", "t5")}
    for name, folder in found.items():
        build_worded(name, folder)
    return found


def _refused(capsys: pytest.CaptureFixture[str], model: Path, *words: str) -> str:
    """The one line that `edgempi finetune` refuses with."""
    status = main(["finetune", f"model.path={model}", "technique=lora", "system=standalone", "cluster=local1", *words])
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("edgempi: "))
    return line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"", "line 1: empty; the first line names the columns"),
        (b"text,label\n", "column label: 0 different labels; there are at least two classes"),
        (b"text,label\nthe car,1\n", "1 different labels"),
        (b"txt,label\nthe car,1\na boat,0\n", "it names text, label, each once. Look at text"),
        (b"text,mood\nthe car,1\na boat,0\n", "it names label, each once. Look at label"),
        (b"the car,1\na boat,0\n", "this may be another task's file, or one without header"),
        (b'text,label\na,0\n"the car,1\na,0\n', "line 3: unexpected end of data; a field with quotes is quoted"),
        (b"text,label\ncaf\xe9,1\na,0\n", "line 2: byte 0xe9 at place 4; data files are UTF-8"),
        ("text,label\na,1\nb,0\n".encode("utf-16"), "line 1: byte 0xff at place 1; data files are UTF-8"),
        (b"text,label\n\0,1\na,0\n", "line 2: a NUL character; data files are text in UTF-8"),
        (b"text,label\na,0.5\nb,1.25\n", "scores, and no classes. Set finetune_data.score_range=[0.5,1.25]"),
        (b"text,label\n,1\n,0\n", "no usable row (2 rows: text is empty (line 2, 3)); it holds at least one"),
    ],
)
def test_a_table(capsys: pytest.CaptureFixture[str], folders: dict[str, Path], rows: bytes, said: str) -> None:
    Path("rows.csv").write_bytes(rows)
    assert said in _refused(capsys, folders["bert"], "finetune_data.path=rows.csv", *TABLE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune_data.labels=[no,yes]"], "rows.csv, line 4: label: '2'; it is one of 0, 1, no, yes"),
        (["finetune_data.score_range=[0,1]"], "rows.csv, line 4: score: '2'; it is a number from 0 to 1"),
        (["finetune_data.validation=none.csv"], "data file none.csv: No such file or directory"),
        (["finetune_data.label=id"], "Look at id"),
        (["finetune_data.texts=[a,b,c]"], "finetune_data.texts: a, b, c; they are one or two columns"),
        (["finetune_data.max_tokens=1"], "finetune_data.max_tokens: 1; beside the 1 that the tokenizer adds"),
        (["finetune_data.max_tokens=0"], "finetune_data.max_tokens: 0; at least 1"),
    ],
)
def test_what_is_asked_of_a_table(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], words: list[str], said: str
) -> None:
    Path("rows.csv").write_text("text,label\nthe car,0\na boat,1\nthe river,2\n")
    assert said in _refused(capsys, folders["bert"], "finetune_data.path=rows.csv", *TABLE, *words)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "no usable row; it holds at least one"),
        ("\n\n", "no usable row (2 rows: blank line (line 1, 2))"),
        ('{"text": "the car"}\n{"text": "the\n', "line 2: Unterminated string"),
        ('[{"text": "the car"}]\n', "line 1: list; each line is one JSON object"),
        ('{"text": "the car"}\n{"prompt": "a", "completion": "b"}\n', "line 2: fields prompt, completion; rows"),
        ('{"words": "the car"}\n', "line 1: fields words; rows of this file have messages, or conversations"),
        ('{"text": ["the car"]}\n', "line 1: text: list; it is a string"),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', "1 row: no message of the assistant (line 1)"),
        ('{"prompt": "the car", "completion": "' + "a " * 70 + '"}\n', "nothing to learn (1 row: an answer left out"),
    ],
)
def test_lines_of_json(capsys: pytest.CaptureFixture[str], folders: dict[str, Path], rows: str, said: str) -> None:
    Path("rows.jsonl").write_text(rows, encoding="utf-8")
    words = ("finetune_data=jsonl", "finetune_data.path=rows.jsonl", "finetune_data.max_tokens=64")
    assert said in _refused(capsys, folders["llama"], *words)


@pytest.mark.parametrize(
    ("task", "lines", "said"),
    [
        ("sst2", [], "line 1: empty; the first line names the columns"),
        ("sst2", ["sentence\tlabel", "fine\t2"], "line 2: label: '2'; it is one of 0, 1, negative, positive"),
        ("sst2", ["sentence\tlabel", "fine\t-1"], "line 2: label: '-1'; it is one of 0, 1"),
        ("stsb", [STSB, "0\tg\tf\ty\t1\tn\tn\ta\tb\t5.1"], "line 2: score: '5.1'; it is a number from 0 to 5"),
        ("stsb", ["sentence\tlabel", "fine\t1"], "Look at sentence1 and sentence2 and score: this may be another"),
        ("qnli", ["index\tquestion\tsentence\tlabel", "0\tWho ?\tHe ."], "1 row: another number of fields than the"),
    ],
)
def test_glue(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], task: str, lines: list[str], said: str
) -> None:
    for stem in ("train", "dev"):
        Path(f"{stem}.tsv").write_text("".join(f"{line}\n" for line in lines))
    words = (f"finetune_data={task}", "finetune_data.source=glue", "finetune_data.path=.")
    assert said in _refused(capsys, folders["bert"], *words)


def test_a_folder_without_rows(capsys: pytest.CaptureFixture[str], folders: dict[str, Path]) -> None:
    words = ("finetune_data.source=glue", "finetune_data.path=nowhere")
    assert "GLUE task mrpc: no train rows in nowhere" in _refused(capsys, folders["bert"], *words)
    words = ("finetune_data=jsonl", "finetune_data.path=.")
    assert "data folder .: no train.jsonl" in _refused(capsys, folders["llama"], *words)


def test_a_tokenizer_of_another_model(
    capsys: pytest.CaptureFixture[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(folders["bert"], tmp_path / "model")
    about = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    about["model"]["vocab"]["boat"] = 4000
    (model / "tokenizer.json").write_text(json.dumps(about), encoding="utf-8")
    Path("rows.csv").write_text("text,label\nthe car,0\na boat,1\n")
    line = _refused(capsys, model, "finetune_data.path=rows.csv", *TABLE)
    assert "rows.csv, line 3: token 'boat' has the id 4000; the model has rows for ids below" in line
    assert "Use the tokenizer that belongs to these weights" in line


def test_classes_that_the_tokenizer_writes_alike(capsys: pytest.CaptureFixture[str], folders: dict[str, Path]) -> None:
    Path("rows.csv").write_text("text,label\nthe car,qwerty\na boat,uiop\n")
    line = _refused(capsys, folders["t5"], "finetune_data.path=rows.csv", *TABLE)
    assert "classes: qwerty and uiop; classes that are written as text differ in their tokens" in line


def test_a_file_with_everything_that_may_be_there(folders: dict[str, Path], tmp_path: Path) -> None:
    """A byte-order mark, line ends of two characters, quotes, separators of Unicode, and rows to be skipped."""
    path = tmp_path / "rows.csv"
    lines = [
        "text,label", '"the ""car"", it is",yes', '"a boat\r\nnear\u2028the river",no', "", "short", ",yes",
        "the\x85car,no",
    ]  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    data: dict[str, Any] = {"source": SourceName.table, "path": str(path), "texts": ["text"], "label": "label"}
    config = job(folders["bert"], tmp_path / "run", "standalone", 1)
    payload = prepare(replace(config, finetune_data=FinetuneDataConfig(**data, max_tokens=64)))
    assert payload["data"]["rows"] == {"train.npz": 3}
    assert payload["data"]["told"] == [
        "rows.csv, 1 row: blank line (line 5)",
        "rows.csv, 1 row: another number of fields than the header (line 6)",
        "rows.csv, 1 row: text is empty (line 7)",
    ]


def test_chats_that_are_skipped_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(folders["llama"], tmp_path / "model")
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}"
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    (model / "chat_template.jinja").write_text(template)
    asked, told = {"role": "user", "content": "the car"}, {"role": "assistant", "content": "a boat"}
    chats = [[asked, told], [told, asked, told], [{"role": "system", "content": "fine"}, asked, told], [asked]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    data = FinetuneDataConfig(source=SourceName.jsonl, path=str(path), task=None, max_tokens=64)
    payload = prepare(replace(job(model, tmp_path / "run", "standalone", 1), finetune_data=data))
    assert payload["data"]["rows"] == {"train.npz": 2}
    assert payload["data"]["told"] == [
        "rows.jsonl, 1 row: begins with the assistant: what it says before it is asked is left out (line 2)",
        "rows.jsonl, 1 row: no message of the assistant (line 4)",
        "rows.jsonl, 1 row: repeats an earlier row (kept) (line 2)",
        "rows.jsonl, 1 row: left out: the chat template cannot write it (the user begins) (line 3)",
    ]
