"""The rows that a configuration names: read, made or refused; and how they become tokens for the model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgempi.config.finetune import FinetuneDataConfig, SourceName
from edgempi.errors import UserError
from edgempi.finetune.data.causal import Answers, Blocks
from edgempi.finetune.data.examples import Labelled, Loaded, Text
from edgempi.finetune.data.generated import write_task
from edgempi.finetune.data.glue import glue_task, read_glue
from edgempi.finetune.data.jsonl import find_splits, read_jsonl, read_named
from edgempi.finetune.data.samples import Template
from edgempi.finetune.data.task import Task, classes_in, read_table
from edgempi.finetune.data.templates import Classify, TextToText
from edgempi.plan.spec import ModelSpec

HELD_OUT = 4
"""One row to evaluate on is made for so many to train on."""


@dataclass(frozen=True)
class Chosen:
    """What is trained and evaluated on.

    Attributes:
        train, validation: rows; no validation where none are named.
        task: what is asked of labelled rows; None for texts.
    """

    train: Loaded
    validation: Loaded | None
    task: Task | None


def choose(config: FinetuneDataConfig, folder: Path) -> Chosen:
    """Read the rows.

    Args:
        config: which.
        folder: where rows are made.

    Raises:
        UserError: they cannot be read, have other columns, or hide their labels.
    """
    match config.source:
        case SourceName.jsonl:
            chosen = _jsonl(config)
        case SourceName.table:
            chosen = _table(config)
        case SourceName.glue:
            chosen = _glue(config, Path(config.path or ""))
        case SourceName.generated:
            rows = config.generated_rows
            write_task(
                folder, _named(config), seed=config.seed, train=rows, dev=max(1, rows // HELD_OUT), test=1,
                shuffled=config.shuffle_labels,
            )  # fmt: skip
            chosen = _glue(config, folder)
    for loaded in (chosen.train, chosen.validation):
        if loaded is not None:
            loaded.require_labels()
    return chosen


def template_for(config: FinetuneDataConfig, chosen: Chosen, spec: ModelSpec) -> Template:
    """How these rows become tokens of this model.

    Args:
        config: the lengths, and whether labels are written as text.
        chosen: the rows.
        spec: of the checkpoint.

    Raises:
        UserError: the model has no use for such rows.
    """
    kind, both = chosen.train.examples[0], bool(spec.enc and spec.dec)
    if config.text_to_text not in (None, both):
        raise UserError(
            "finetune_data.text_to_text", value=str(config.text_to_text).lower(),
            rule="labels are written as text by an encoder-decoder, and named by a head in other models",
            remedy="Leave it null",
        )  # fmt: skip
    if both and not isinstance(kind, Text):
        assert spec.start_token is not None
        return TextToText(chosen.task, spec.start_token, config.max_tokens, config.max_target_tokens)
    if isinstance(kind, Labelled):
        return Classify(config.max_tokens, "enc" if spec.enc else "dec")
    if spec.enc:
        raise UserError(
            f"rows of {chosen.train.origin}", value=type(kind).__name__.lower(),
            rule="an encoder learns labels, an encoder-decoder also prompts with completions",
            remedy="Choose a decoder's checkpoint, or rows with labels",
        )  # fmt: skip
    return Blocks(config.max_tokens) if isinstance(kind, Text) else Answers(config.max_tokens)


def task_of(config: FinetuneDataConfig) -> Task | None:
    """What is asked of labelled rows; None for texts.

    No row is read, but the label's column of a table whose classes are not named.

    Raises:
        UserError: it cannot be told from the configuration.
    """
    match config.source:
        case SourceName.table if config.label is not None:
            return _asked(config, Path(config.path or "").expanduser(), config.label)
        case SourceName.glue | SourceName.generated:
            return glue_task(_named(config))
    return None


def labels_of(task: Task | None, spec: ModelSpec) -> int | None:
    """Of a head of labels: how many classes, 1 for a score; None where the answer is text."""
    if task is None or (spec.enc and spec.dec):
        return None
    return max(1, len(task.labels))


def label_ids(task: Task | None, template: Template, tokenizer: Any) -> list[list[int]]:
    """The token ids of each class, where classes are written as text; empty elsewhere.

    Raises:
        UserError: two classes are written alike, or one is longer than what may be written.
    """
    if task is None or task.is_score or not isinstance(template, TextToText):
        return []
    found: list[list[int]] = []
    for name in task.labels:
        ids = list(tokenizer(text_target=name, verbose=False)["input_ids"])
        if len(ids) > template.max_target_length:
            raise UserError(
                "finetune_data.max_target_tokens", value=template.max_target_length,
                rule=f"the class {name} is written with {len(ids)} tokens", remedy=f"Set it to {len(ids)} or more",
            )  # fmt: skip
        if ids in found:
            raise UserError(
                "classes", value=f"{task.labels[found.index(ids)]} and {name}",
                rule="classes that are written as text differ in their tokens; the tokenizer writes both alike",
                remedy="Call them by words that the tokenizer knows, or choose an encoder's or decoder's checkpoint",
            )  # fmt: skip
        found.append(ids)
    return found


def padding_of(spec: ModelSpec, tokenizer: Any) -> int:
    """The id that rows are padded with.

    Padding is masked, so any will do in training; but transformers finds the last token of a row, which a decoder's
    head of labels reads, by the id that its configuration names. So it is the configuration's or the tokenizer's,
    where the model has a row for it, or else what ends a text.
    """
    rows = min(stack.embedding.vocabulary for stack in spec.stacks.values())
    ids = (spec.pad_token, tokenizer.pad_token_id, *spec.stop_tokens, tokenizer.eos_token_id, 0)
    return next(number for number in ids if number is not None and 0 <= number < rows)


def _glue(config: FinetuneDataConfig, folder: Path) -> Chosen:
    name = _named(config)
    return Chosen(read_glue(folder, name, "train"), read_glue(folder, name, "validation"), glue_task(name))


def _named(config: FinetuneDataConfig) -> str:
    if config.task is None:
        raise UserError(
            "finetune_data.task", value="null", rule=f"source={config.source} has one of mrpc, stsb, sst2 and qnli",
            remedy="Name it, or choose another source",
        )  # fmt: skip
    return config.task


def _jsonl(config: FinetuneDataConfig) -> Chosen:
    path = Path(config.path or "").expanduser()
    splits = find_splits(path) if path.is_dir() else {"train": path}
    validation = Path(config.validation).expanduser() if config.validation else splits.get("validation")
    return Chosen(read_jsonl(splits["train"]), None if validation is None else read_jsonl(validation), None)


def _table(config: FinetuneDataConfig) -> Chosen:
    paths = [Path(name).expanduser() for name in (config.path, config.validation) if name is not None]
    if len(config.texts) not in (1, 2):
        raise UserError(
            "finetune_data.texts", value=", ".join(config.texts) or "none", rule="they are one or two columns",
            remedy="Name the columns of the texts, such as finetune_data.texts=[question,sentence]",
        )  # fmt: skip
    task: Task | None = None
    if config.label is None:
        *prompt, answer = config.texts
        found = [read_named(path, prompt[0] if prompt else None, answer) for path in paths]
    else:
        task = _asked(config, paths[0], config.label)
        found = [read_table(path, task, config.texts, config.label) for path in paths]
    return Chosen(found[0], found[1] if len(found) > 1 else None, task)


def _asked(config: FinetuneDataConfig, path: Path, label: str) -> Task:
    name, fields = config.task or "classify", tuple(config.texts)
    if config.score_range is not None:
        lowest, highest = config.score_range
        return Task(name, fields, (), lowest, highest, ("pearson", "spearman"))
    labels = tuple(config.labels) or classes_in(path, label)
    return Task(name, fields, labels, metrics=("f1", "accuracy") if len(labels) == 2 else ("accuracy",))
