"""Household commands with their intents, made from hand-written templates.

``templates.json`` holds the templates in groups; a group has the name of its intent and the fields that
all of its templates share. A template such as ``dim the {room} lights to {level}`` becomes a command when
its slots are filled.

About a fifth of the templates is held out, chosen by a hash of their text alone. No held-out template
shares a frame (five words in a row, every slot counted as one and the same word) with a training
template, so the held-out figure says how the model does with phrasings that it has never seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from edgempi.assets.household.slots import SLOTS, Value

FIELDS = ("device", "room", "action", "value", "time")
FRAME_WORDS = 5

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """One hand-written phrasing of an intent."""

    text: str
    intent_name: str
    fields: tuple[tuple[str, Value], ...]

    @property
    def id(self) -> str:
        """A short stable name, which changes when the text does."""
        return _digest(self.text).hex()[:12]


@dataclass(frozen=True)
class Command:
    """A command as a person would give it, and what it means."""

    text: str
    intent: dict[str, Value]
    intent_name: str
    template_id: str

    @property
    def answer(self) -> str:
        """The intent as the compact JSON that the model is to write."""
        return json.dumps(self.intent, separators=(",", ":"))


@cache
def load_templates() -> tuple[Template, ...]:
    """Read all templates, in the order of the file."""
    groups = json.loads(resources.files(__package__).joinpath("templates.json").read_text(encoding="utf-8"))
    return tuple(
        Template(text, group["intent"], tuple(group["fields"].items()))
        for group in groups
        for text in group["templates"]
    )


def split_of(template: str) -> str:
    """Say whether the template with this text is for "train" or "heldout", by its hash alone."""
    return "heldout" if int.from_bytes(_digest(template)[:8], "big") % 5 == 0 else "train"


def templates_of(split: str) -> tuple[Template, ...]:
    """Return the templates of one split, "train" or "heldout"."""
    if split not in ("train", "heldout"):
        raise ValueError(f'the split is "train" or "heldout", not {split!r}')
    return tuple(template for template in load_templates() if split_of(template.text) == split)


def frames(text: str) -> set[tuple[str, ...]]:
    """Return every run of five words in a template, with each slot as the same placeholder word."""
    words = _words(text)
    return {words[i : i + FRAME_WORDS] for i in range(len(words) - FRAME_WORDS + 1)}


def shared_frames() -> set[tuple[str, ...]]:
    """Return the frames that a training and a held-out template share: there must be none."""
    trained = {frame for template in templates_of("train") for frame in frames(template.text)}
    return trained & _heldout_runs()


def may_train_on(text: str) -> bool:
    """Say whether a phrasing has no frame of a held-out template and is none of them word for word."""
    return (frames(text) | {_words(text)}).isdisjoint(_heldout_runs())


@cache
def _heldout_runs() -> frozenset[tuple[str, ...]]:
    """Return the frames of the held-out templates, and each of these templates as a whole."""
    texts = [template.text for template in templates_of("heldout")]
    return frozenset(run for text in texts for run in (*frames(text), _words(text)))


def _words(text: str) -> tuple[str, ...]:
    plain = _SLOT.sub(" _ ", text.lower()).replace("'", "")
    return tuple(re.sub(r"[^\w\s]", " ", plain).split())


def fill(template: Template, rng: random.Random) -> Command:
    """Make a command from a template: fill its slots and write it as speech or as a sentence."""
    intent: dict[str, Value] = dict.fromkeys(FIELDS) | dict(template.fields)
    said: dict[str, str] = {}
    for slot in _SLOT.findall(template.text):
        if slot not in said:
            said[slot], meaning = SLOTS[slot](rng)
            intent |= meaning
    text = _SLOT.sub(lambda match: said[match.group(1)], template.text)
    return Command(_written(text, rng), intent, template.intent_name, template.id)


def commands(split: str, seed: int, count: int | None = None) -> Iterator[Command]:
    """Yield commands of a split, the same ones for the same seed, endlessly unless ``count`` is given.

    Every template takes its turn before any comes again, so all weigh the same.
    """
    return itertools.islice(_endless(templates_of(split), random.Random(seed)), count)


def _endless(templates: tuple[Template, ...], rng: random.Random) -> Iterator[Command]:
    while True:
        for template in rng.sample(templates, len(templates)):
            yield fill(template, rng)


def _written(text: str, rng: random.Random) -> str:
    """Write half of the commands as heard (no capitals, no marks) and half as a typed sentence."""
    if rng.random() < 0.5:
        return re.sub(r"[,?]", "", text)
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
