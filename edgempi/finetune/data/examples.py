"""What is read from files: typed examples, and a tally of the rows that were left out or cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgempi.errors import UserError

SHOWN_LINES = 5
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True)
class Labelled:
    """One text or a pair, and its class number or score; None where the file keeps the label hidden."""

    texts: tuple[str, ...]
    label: int | float | None


@dataclass(frozen=True)
class Completion:
    """A prompt and what should follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: who speaks.
        content: what is said.
        more: the canonical JSON of whatever else it carries (tool calls, a name).
        learned: whether it is learned where it is an answer; False: it is there to be read.
    """

    role: str
    content: str
    more: str = ""
    learned: bool = True

    @property
    def is_answer(self) -> bool:
        """Whether there is something to learn in it."""
        return self.role == ASSISTANT and self.learned and bool(self.content.strip() or self.more)


@dataclass(frozen=True)
class Chat:
    """Turns in order; `tools` is the canonical JSON of the tools that were on offer."""

    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True)
class Text:
    """Plain text, every token of which is learned."""

    text: str


Example = Labelled | Completion | Chat | Text


@dataclass
class Tally:
    """How many rows something happened to, by reason, and the first lines where it did."""

    rows: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def note(self, reason: str, line: int) -> None:
        """Count one more row, which begins in line `line` (from 1; the row's number where a file has no lines)."""
        self.rows[reason] = self.rows.get(reason, 0) + 1
        first = self.lines.setdefault(reason, [])
        if len(first) < SHOWN_LINES:
            first.append(line)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {reason: {"rows": rows, "first_lines": self.lines[reason]} for reason, rows in self.rows.items()}

    def sentences(self) -> list[str]:
        """One sentence for each reason, for a person."""
        return [
            f"{rows} {'row' if rows == 1 else 'rows'}: {reason} (line {', '.join(map(str, self.lines[reason]))}"
            f"{', ...' if rows > len(self.lines[reason]) else ''})"
            for reason, rows in self.rows.items()
        ]


@dataclass(frozen=True)
class Loaded:
    """What a file gave: examples, the line where each begins, and what was skipped."""

    origin: str
    examples: tuple[Example, ...]
    lines: tuple[int, ...]
    tally: Tally

    @property
    def labelled(self) -> bool:
        """Whether no label is hidden, so that the rows can be trained on and scored."""
        return all(not isinstance(example, Labelled) or example.label is not None for example in self.examples)

    def require_labels(self) -> None:
        """Refuse rows whose labels are hidden, as those of GLUE's test sets are.

        Raises:
            UserError: a label is hidden.
        """
        if not self.labelled:
            raise UserError(
                f"labels of {self.origin}", value="hidden (none, or -1)", rule="training and scoring need them",
                remedy="Use the validation rows; GLUE scores its test sets only on its own site",
            )  # fmt: skip


def gather(origin: str, rows: Iterable[tuple[int, Example]], tally: Tally) -> Loaded:
    """The rows of a file as one `Loaded`; rows that say the same as an earlier one are kept, and counted.

    Raises:
        UserError: there is none.
    """
    numbered = list(rows)
    if not numbered:
        left_out = "; ".join(tally.sentences())
        raise UserError(
            origin, value=f"no usable row{f' ({left_out})' if left_out else ''}", rule="it holds at least one",
            remedy="Look at the file: it may be empty or of another layout",
        )  # fmt: skip
    seen: set[Example] = set()
    for line, example in numbered:
        if example in seen:
            tally.note("repeats an earlier row (kept)", line)
        seen.add(example)
    return Loaded(origin, tuple(e for _, e in numbered), tuple(line for line, _ in numbered), tally)


def wrong(where: str, value: object, rule: str) -> UserError:
    """What to raise for a row that breaks a rule."""
    return UserError(where, value=value, rule=rule, remedy="Correct the row")


def missing(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the named fields that a row lacks or leaves empty; blanks count as empty, and so does no number."""
    for name in names:
        value = row.get(name)
        blank = isinstance(value, str) and not value.strip()
        if value is None or blank or (isinstance(value, float) and math.isnan(value)):
            return name
    return None
