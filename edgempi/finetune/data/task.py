"""What is asked about a text or a pair of texts: one of several classes, or a score."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Labelled, Loaded, Tally, gather, missing
from edgempi.finetune.data.tables import Row, rows_of

HIDDEN = -1
"""The label of a row whose label is kept hidden."""
MANY_CLASSES = 20
"""So many classes may be there however few the rows are."""
WHOLE = re.compile(r"(-?\d+)\.0*")
"""A whole number as a column of floats writes it."""


@dataclass(frozen=True)
class Task:
    """A classification or a regression.

    Attributes:
        name: what text-to-text prompts begin with.
        fields: the names of its one or two texts.
        labels: class names in order of their numbers; empty for a score.
        lowest, highest: the range of a score.
        metrics: what it is judged by (`metrics.METRICS`).
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] = ()
    lowest: float = 0.0
    highest: float = 5.0
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def is_score(self) -> bool:
        """Whether it asks for a score."""
        return not self.labels

    def label(self, value: object, where: str) -> int | float:
        """The class number or score that a field holds: a class by its name or number.

        Raises:
            UserError: it holds neither, or is out of range.
        """
        if self.is_score:
            return self._score(value, where)
        text = str(value).strip()
        for name in (text, _plain(text)):
            if name in self.labels:
                return self.labels.index(name)
        # Classes that are called by numbers of their own (stars from 1 to 5) have no second ones.
        named = any(_number(name) is not None for name in self.labels)
        numbers = [] if named else [str(number) for number in range(len(self.labels))]
        if text in numbers:
            return int(text)
        raise UserError(
            f"{where}: label", value=repr(value),
            rule=f"it is one of {', '.join([*numbers, *self.labels])}",
            remedy="Correct the row, or check that this is the task's own file",
        )  # fmt: skip

    def _score(self, value: object, where: str) -> float:
        try:
            score = float(str(value).strip())
        except ValueError:
            score = math.nan
        if not self.lowest <= score <= self.highest:
            raise UserError(
                f"{where}: score", value=repr(value), rule=f"it is a number from {self.lowest:g} to {self.highest:g}",
                remedy="Correct the row, or check that this is the task's own file",
            )  # fmt: skip
        return score


def labelled_rows(
    rows: Iterable[Row], task: Task, texts: Sequence[str], label: str | None, origin: str, tally: Tally,
    hidden: bool = False,
) -> Loaded:  # fmt: skip
    """Examples from the rows of a table.

    Args:
        rows: fields by column name.
        task: which labels there are.
        texts: the columns of its texts.
        label: the column of the label; None where the file has none.
        origin: the file, for messages.
        tally: rows with an empty text or label are counted there and skipped.
        hidden: whether labels may be hidden (-1), as in GLUE's test sets.

    Raises:
        UserError: a label is none of the task's, or no row is left.
    """

    def examples() -> Iterable[tuple[int, Labelled]]:
        for line, row in rows:
            empty = missing(row, texts if label is None else (*texts, label))
            if empty is not None:
                tally.note(f"{empty} is empty", line)
                continue
            where = f"{origin}, line {line}"
            if bad := next((name for name in texts if not isinstance(row[name], str)), None):
                raise UserError(
                    f"{where}: {bad}", value=repr(row[bad]), rule="it is text", remedy="Name the column that holds it"
                )
            found = None
            if label is not None and not (hidden and str(row[label]).strip() in ("-1", "-1.0")):
                found = task.label(row[label], where)
            yield line, Labelled(tuple(row[name] for name in texts), found)

    return gather(origin, examples(), tally)


def read_table(path: Path, task: Task, texts: Sequence[str], label: str | None) -> Loaded:
    """Examples of a task from a .tsv, .csv or .parquet file with named columns.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds a label that is none of the task's.
    """
    tally, columns = Tally(), [*texts, *([label] if label else [])]
    return labelled_rows(rows_of(path, columns, tally), task, texts, label, str(path), tally)


def classes_in(path: Path, column: str) -> tuple[str, ...]:
    """The different labels of a column, sorted, numbers by their value: class names where a user gave none.

    Whole numbers are classes, however they are written (1 or 1.0). Fractions are scores: they are refused, with what to
    set, and so is a column in which most rows have a label to themselves.

    Raises:
        UserError: there is but one class, or what is there are no classes.
    """
    listed = [_plain(row[column]) for _, row in rows_of(path, [column], Tally()) if not missing(row, [column])]
    found, what = sorted(set(listed)), f"{path}: column {column}"
    if len(found) < 2:
        raise UserError(
            what, value=f"{len(found)} different labels", rule="there are at least two classes",
            remedy="Name the column of the labels, or set finetune_data.score_range for a score",
        )  # fmt: skip
    numbers = {label: number for label in found if (number := _number(label)) is not None}
    fractions = [label for label, number in numbers.items() if not number.is_integer()]
    if fractions and 2 * len(numbers) >= len(found):
        raise UserError(
            what, value=f"{', '.join(fractions[:3])} and the like", rule="fractions are scores, and no classes",
            remedy=f"Set finetune_data.score_range=[{min(numbers.values()):g},{max(numbers.values()):g}], or wider for "
            "other rows; if they are classes, name them all in finetune_data.labels",
        )  # fmt: skip
    if len(found) > max(MANY_CLASSES, len(listed) // 2):
        raise UserError(
            what, value=f"{len(found)} different labels in {len(listed)} rows", rule="rows of a class share its label",
            remedy="Name the column of the labels, or finetune_data.score_range for a score, or all classes in "
            "finetune_data.labels",
        )  # fmt: skip
    return tuple(sorted(found, key=numbers.__getitem__) if len(numbers) == len(found) else found)


def _plain(label: object) -> str:
    """A label as its class is called: a whole number without the zeros that a column of floats adds."""
    text = str(label).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
