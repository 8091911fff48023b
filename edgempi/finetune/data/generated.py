"""Four made-up tasks of the shapes of MRPC, STS-B, SST-2 and QNLI, written in their official layout.

No row of GLUE is shipped. These tasks stand in its place in tests and demonstrations: a small model trained from
nothing learns them, and since some labels are wrong on purpose no model gets all of them right. With `shuffled` the
training labels are dealt out anew, so that they say nothing about their rows: what is learned then is a leak.

The same arguments give the same bytes on every platform: every choice is made from `random()` of a seeded Mersenne
Twister, the one stream that Python promises to keep, and no other function of that module is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgempi.config.files import write_atomic
from edgempi.errors import UserError

T = TypeVar("T")

NOISE = 0.06
"""The part of all class labels that are wrong, of test rows too: the best a model can do is 94 %."""
SCORE_NOISE = 0.9
"""A similarity is this much off at most; the best correlation is about 0.95."""
MOST_REPEATS = 10_000
"""So many rows in a row that were there before, and hardly any other is left."""

SLOTS = (
    (("mayor", "alderman"), ("teacher", "tutor"), ("doctor", "medic"), ("farmer", "grower"), ("lawyer", "attorney"),
     ("pilot", "flyer")),
    (("bought", "purchased"), ("sold", "traded"), ("painted", "coloured"), ("broke", "damaged"), ("fixed", "repaired"),
     ("stole", "took")),
    (("car", "auto"), ("boat", "vessel"), ("house", "home"), ("bicycle", "bike"), ("clock", "watch"),
     ("fence", "railing")),
    (("village", "hamlet"), ("coast", "seaside"), ("market", "bazaar"), ("forest", "woods"), ("river", "stream"),
     ("station", "depot")),
)  # fmt: skip
"""What a sentence is about: who did what to which thing near which place, and two words for each."""

THINGS = (
    "film", "plot", "cast", "dialogue", "ending", "music", "story", "script", "direction", "comedy", "drama", "scene",
)  # fmt: skip
GOOD = (
    "charming", "brilliant", "moving", "clever", "delightful", "warm", "gripping", "graceful", "funny", "superb",
    "fresh", "honest",
)  # fmt: skip
BAD = (
    "dull", "clumsy", "tedious", "shallow", "annoying", "cold", "messy", "bland", "tired", "awful", "stale", "fake",
)  # fmt: skip
DEGREES = ("", "", "very", "truly", "rather", "quite")
OPENINGS = ("", "", "for the most part", "all in all", "to my mind", "once again")

KEEPERS = ("anna", "boris", "clara", "david", "elena", "felix", "greta", "hugo")
KEPT = ("violin", "ladder", "kettle", "camera", "lantern", "map", "drum", "mirror")
ANSWERS = {
    "where": ("in the attic", "under the stairs", "behind the barn", "in the cellar", "on the shelf", "by the door"),
    "when": ("before breakfast", "every tuesday", "late in autumn", "after the storm", "at nine", "all summer"),
    "why": ("because it was a gift", "for luck", "to please a friend", "out of habit", "for fun", "since it is rare"),
    "how": ("with great care", "wrapped in wool", "without a word", "with both hands", "in secret", "under a lock"),
}
ASKED = (
    "does {who} keep the {what}",
    "is the {what} kept by {who}",
    "would {who} keep that {what}",
    "has {who} got the {what}",
)
TOLD = (
    "{who} keeps the {what} {how}", "the {what} is kept by {who} {how}", "{how} {who} keeps that {what}",
    "{who} has the {what} {how}",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One row: its texts, and its label as the official file writes it."""

    texts: tuple[str, ...]
    label: str


class _Dice:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, part: float) -> bool:
        return self._random() < part

    def below(self, count: int) -> int:
        return int(self._random() * count)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def shuffled(self, items: Sequence[T]) -> list[T]:
        dealt = list(items)
        for last in range(len(dealt) - 1, 0, -1):
            other = self.below(last + 1)
            dealt[last], dealt[other] = dealt[other], dealt[last]
        return dealt


def _meaning(dice: _Dice) -> list[int]:
    return [dice.below(len(slot)) for slot in SLOTS]


def _changed(meaning: Sequence[int], count: int, dice: _Dice) -> list[int]:
    """The same meaning but for `count` slots."""
    other = list(meaning)
    for slot in dice.shuffled(range(len(SLOTS)))[:count]:
        other[slot] = (meaning[slot] + 1 + dice.below(len(SLOTS[slot]) - 1)) % len(SLOTS[slot])
    return other


def _said(meaning: Sequence[int], dice: _Dice) -> str:
    who, did, what, where = (dice.pick(slot[index]) for slot, index in zip(SLOTS, meaning, strict=True))
    if dice.chance(0.5):
        return f"the {who} {did} a {what} near the {where} ."
    return f"near the {where} the {who} {did} a {what} ."


def _paraphrase(dice: _Dice) -> Made:
    """Two sentences: 1 where they mean the same, in other words; 0 where two slots or more differ."""
    meaning, same = _meaning(dice), dice.chance(0.5)
    other = meaning if same else _changed(meaning, 2 + dice.below(3), dice)
    label = same != dice.chance(NOISE)
    return Made((_said(meaning, dice), _said(other, dice)), str(int(label)))


def _similarity(dice: _Dice) -> Made:
    """Two sentences, and of how many slots the meaning is the same, give or take."""
    meaning, differing = _meaning(dice), dice.below(len(SLOTS) + 1)
    pair = (_said(meaning, dice), _said(_changed(meaning, differing, dice), dice))
    score = 5.0 * (1 - differing / len(SLOTS)) + dice.between(-SCORE_NOISE, SCORE_NOISE)
    return Made(pair, f"{min(5.0, max(0.0, score)):.3f}")


def _sentiment(dice: _Dice) -> Made:
    """A sentence of one or two opinions, some of them negated; the one after a "but" counts."""
    good = dice.chance(0.5)
    opinion = _opinion(good, dice)
    if dice.chance(0.4):
        opinion = f"{_opinion(not good, dice)} but {opinion}"
    elif dice.chance(0.4):
        opinion = f"{_opinion(good, dice)} and {opinion}"
    label = good != dice.chance(NOISE)
    return Made((f"{dice.pick(OPENINGS)} {opinion} ".lstrip(),), str(int(label)))


def _opinion(good: bool, dice: _Dice) -> str:
    negated = dice.chance(0.25)
    word = dice.pick(GOOD if good != negated else BAD)
    said = " ".join(filter(None, ("not" if negated else "", dice.pick(DEGREES), word)))
    return f"the {dice.pick(THINGS)} is {said}"


def _entailment(dice: _Dice) -> Made:
    """A question, and a sentence that answers it or tells something else, or the same of another thing."""
    who, what, asked = dice.pick(KEEPERS), dice.pick(KEPT), dice.pick(tuple(ANSWERS))
    answers = dice.chance(0.5)
    question = f"{asked} {dice.pick(ASKED).format(who=who, what=what)} ?"
    told = asked
    if not answers and dice.chance(0.7):
        told = dice.pick([kind for kind in ANSWERS if kind != asked])
    elif not answers:
        who, what = dice.pick([k for k in KEEPERS if k != who]), dice.pick([k for k in KEPT if k != what])
    sentence = f"{dice.pick(TOLD).format(who=who, what=what, how=dice.pick(ANSWERS[told]))} ."
    label = answers != dice.chance(NOISE)
    return Made((question, sentence), "entailment" if label else "not_entailment")


@dataclass(frozen=True)
class _Shape:
    folder: str
    make: Callable[[_Dice], Made]
    header: str
    test_header: str
    cells: Callable[[Made, int], list[str]]
    """The fields of a row before its label, given its number."""
    label_first: bool = False


SHAPES = {
    "mrpc": _Shape(
        "MRPC", _paraphrase, "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        lambda row, number: [str(100_000 + 2 * number), str(100_001 + 2 * number), *row.texts], label_first=True,
    ),
    "stsb": _Shape(
        "STS-B", _similarity,
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        lambda row, number: [str(number), "generated", "slots", "none", str(number), "none", "none", *row.texts],
    ),
    "sst2": _Shape("SST-2", _sentiment, "sentence\tlabel", "index\tsentence", lambda row, number: list(row.texts)),
    "qnli": _Shape(
        "QNLI", _entailment, "index\tquestion\tsentence\tlabel", "index\tquestion\tsentence",
        lambda row, number: [str(number), *row.texts],
    ),
}  # fmt: skip
"""The official layout of each task: folder, header lines, and where the texts stand."""


def made_rows(name: str, count: int, seed: int) -> list[Made]:
    """The first `count` rows of a task that differ from each other; fewer are the beginning of more.

    Raises:
        UserError: no task of that name, or it has fewer rows than that.
    """
    shape, dice, seen = _shape(name), _Dice(seed), set()
    rows: list[Made] = []
    repeats = 0
    while len(rows) < count:
        row = shape.make(dice)
        repeats += 1
        if row.texts not in seen:
            seen.add(row.texts)
            rows.append(row)
            repeats = 0
        elif repeats == MOST_REPEATS:
            raise UserError(
                "generated rows", value=count, rule=f"{name} has little more than {len(rows)} that differ",
                remedy="Make fewer (finetune_data.generated_rows)",
            )  # fmt: skip
    return rows


def write_task(
    folder: Path, name: str, *, seed: int = 0, train: int = 8000, dev: int = 2000, test: int = 500,
    shuffled: bool = False,
) -> Path:  # fmt: skip
    """Write train.tsv, dev.tsv and test.tsv (without labels) of one task, and return the folder they are in.

    No row of one file is in another. `shuffled` deals the training labels out anew and leaves the dev labels true.

    Raises:
        UserError: no task of that name, it has fewer rows than that, or they cannot be written.
    """
    shape = _shape(name)
    rows = made_rows(name, train + dev + test, seed)
    trained, held, hidden = rows[:train], rows[train : train + dev], rows[train + dev :]
    if shuffled:
        labels = _Dice(seed + 1).shuffled([row.label for row in trained])
        trained = [Made(row.texts, label) for row, label in zip(trained, labels, strict=True)]
    target = Path(folder) / shape.folder
    try:
        target.mkdir(parents=True, exist_ok=True)
        for split, part in (("train", trained), ("dev", held)):
            write_atomic(target / f"{split}.tsv", _file(shape.header, (_line(shape, i, r) for i, r in enumerate(part))))
        lines = (_test_line(shape, number, row) for number, row in enumerate(hidden))
        write_atomic(target / "test.tsv", _file(shape.test_header, lines))
    except OSError as error:
        raise UserError(
            f"generated rows in {target}", value=error.strerror or error, rule="they can be written there",
            remedy="Free some space, or set task.folder to another one",
        ) from error  # fmt: skip
    return target


def vocabulary() -> tuple[str, ...]:
    """Every word of the four tasks, sorted: enough for a tokenizer of whole words."""
    slots = [phrase for slot in SLOTS for meaning in slot for phrase in meaning]
    told = [phrase for phrases in (*ANSWERS.values(), ASKED, TOLD) for phrase in phrases]
    single = [*THINGS, *GOOD, *BAD, *DEGREES, *OPENINGS, *KEEPERS, *KEPT, *ANSWERS, "the a near is not but and . ?"]
    words = {word for phrase in (*slots, *told, *single) for word in phrase.split()}
    return tuple(sorted(word for word in words if not word.startswith("{")))


def _line(shape: _Shape, number: int, row: Made) -> str:
    cells = shape.cells(row, number)
    return "\t".join([row.label, *cells] if shape.label_first else [*cells, row.label])


def _test_line(shape: _Shape, number: int, row: Made) -> str:
    cells = shape.cells(row, number)
    numbered = shape.test_header.startswith("index") and cells[0] != str(number)
    return "\t".join([str(number), *cells] if numbered else cells)


def _file(header: str, lines: Iterable[str]) -> str:
    return "\n".join([header, *lines, ""])


def _shape(name: str) -> _Shape:
    if name not in SHAPES:
        raise UserError(
            "generated task", value=name, rule=f"it is one of {', '.join(SHAPES)}", remedy="Correct the name"
        )
    return SHAPES[name]
