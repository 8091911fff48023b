"""MRPC, STS-B, SST-2 and QNLI of the GLUE benchmark (arXiv 1804.07461), from a folder of one's own.

Read as they are handed out: the official TSV files, the raw files of the Microsoft paraphrase corpus, or the parquet
files of the hub. Columns are found by name, never by place, so a file in the wrong folder is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Loaded, Tally
from edgempi.finetune.data.lines import text_lines
from edgempi.finetune.data.tables import Row, parquet_rows, tsv_rows
from edgempi.finetune.data.task import Task, labelled_rows

SPLITS = ("train", "validation", "test")
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Layout:
    """Where a task lies: the names of its folder, and its columns in the official TSV files."""

    task: Task
    folders: tuple[str, ...]
    texts: tuple[str, ...]
    label: str


MRPC = Task("mrpc", PAIR, ("not_equivalent", "equivalent"), metrics=("f1", "accuracy"))
STSB = Task("stsb", PAIR, metrics=("pearson", "spearman"))
SST2 = Task("sst2", ("sentence",), ("negative", "positive"))
QNLI = Task("qnli", ("question", "sentence"), ("entailment", "not_entailment"))

LAYOUTS = {
    "mrpc": Layout(MRPC, ("MRPC", "mrpc"), ("#1 String", "#2 String"), "Quality"),
    "stsb": Layout(STSB, ("STS-B", "stsb", "sts-b", "STSB"), PAIR, "score"),
    "sst2": Layout(SST2, ("SST-2", "sst2", "sst-2", "SST2"), ("sentence",), "label"),
    "qnli": Layout(QNLI, ("QNLI", "qnli"), ("question", "sentence"), "label"),
}


def glue_task(name: str) -> Task:
    """One of the four tasks.

    Raises:
        UserError: no task of that name.
    """
    return _layout(name).task


def read_glue(folder: Path, name: str, split: str) -> Loaded:
    """The rows of one split of a task.

    Args:
        folder: the task's own folder, or the one that holds it.
        name: mrpc, stsb, sst2 or qnli.
        split: train, validation or test. Labels that a test set hides are None.

    Raises:
        UserError: the files are missing, damaged, or another task's; or a label is none of the task's.
    """
    layout, tally = _layout(name), Tally()
    if split not in SPLITS:
        raise UserError("split", value=split, rule=f"it is one of {', '.join(SPLITS)}", remedy="Correct the name")
    hidden, task = split == "test", layout.task
    for place in _places(Path(folder), layout):
        tsv = next((path for stem in _stems(split) if (path := place / f"{stem}.tsv").is_file()), None)
        if tsv is not None:
            label = None if hidden and not _names(tsv, layout.label) else layout.label
            columns = [*layout.texts, *([label] if label else [])]
            return labelled_rows(tsv_rows(tsv, columns, tally), task, layout.texts, label, str(tsv), tally, hidden)
        if shards := _shards(place, split):
            rows, origin = parquet_rows(shards, [*task.fields, "label"]), str(shards[0])
            return labelled_rows(rows, task, task.fields, "label", origin, tally, hidden)
        raw = place / f"msr_paraphrase_{'test' if hidden else 'train'}.txt"
        if task is MRPC and raw.is_file():
            rows = _msr_rows(raw, split, tally)
            return labelled_rows(rows, task, layout.texts, layout.label, str(raw), tally)
    raise UserError(
        f"GLUE task {name}", value=f"no {split} rows in {folder}",
        rule=f"it or a folder {' or '.join(layout.folders)} in it has {_stems(split)[0]}.tsv or {split}-*.parquet",
        remedy="Point to the folder where the files of GLUE lie (edgempi neither ships nor fetches them)",
    )  # fmt: skip


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise UserError("GLUE task", value=name, rule=f"it is one of {', '.join(LAYOUTS)}", remedy="Correct the name")
    return LAYOUTS[name]


def _places(folder: Path, layout: Layout) -> list[Path]:
    """Where a task's files may be: sub-folders of its name first."""
    return [place for place in (*(folder / name for name in layout.folders), folder) if place.is_dir()]


def _stems(split: str) -> tuple[str, ...]:
    return ("dev", "validation") if split == "validation" else (split,)


def _names(path: Path, column: str) -> bool:
    return column in next(text_lines(path), (1, ""))[1].split("\t")


def _shards(place: Path, split: str) -> list[Path]:
    """The parquet files of a split in order, all of them.

    Raises:
        UserError: one that the names of the others speak of is missing.
    """
    whole = place / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    found = sorted(place.glob(f"{split}-*.parquet"))
    counted = re.fullmatch(rf"{split}-\d+-of-(\d+)", found[0].stem) if found else None
    if counted and len(found) != int(counted[1]):
        raise UserError(
            f"{place}/{split}-*.parquet", value=f"{len(found)} files", rule=f"their names speak of {int(counted[1])}",
            remedy="Fetch the missing ones, and remove those of another version",
        )  # fmt: skip
    return found


def _msr_rows(path: Path, split: str, tally: Tally) -> Iterator[Row]:
    """Rows of Microsoft's own files; `dev_ids.tsv` names the pairs of the training file that GLUE validates on."""
    columns = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    held: set[tuple[str, ...]] = set()
    if split != "test":
        ids = path.with_name("dev_ids.tsv")
        if not ids.is_file():
            raise UserError(
                f"MRPC in {path.parent}", value="no dev_ids.tsv", rule="it names the pairs that are validated on",
                remedy="Put GLUE's dev_ids.tsv beside the file, or use train.tsv and dev.tsv",
            )  # fmt: skip
        held = {tuple(line.split("\t")) for _, line in text_lines(ids)}
    for number, row in tsv_rows(path, columns, tally):
        if ((row["#1 ID"], row["#2 ID"]) in held) == (split == "validation"):
            yield number, row
