"""The model that was tuned, as an export names it, and the folder that an export is written to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from edgempi.errors import UserError
from edgempi.finetune.checkpoint.position import spec_fingerprint
from edgempi.models.checkpoint import Checkpoint
from edgempi.plan.spec import ModelSpec

CONFIG_FILE = "adapter_config.json"
OWN_FILE = "edgempi.json"
"""What others have no field for; one of the two is in every export."""
CLASS = re.compile(r"(?P<family>\w+?)(?P<kind>For\w+|LMHeadModel|EncoderModel|Model)$")


@dataclass(frozen=True)
class Base:
    """The model that an export belongs to.

    Attributes:
        name: hub id, or the path as it was given.
        revision: of the hub id.
        fingerprint: of the weights (`models.checkpoint.Checkpoint.fingerprint`).
        form: fingerprint of the spec, as the checkpoint has it.
        architecture: the class that it was saved from.
    """

    name: str
    revision: str | None
    fingerprint: str
    form: str
    architecture: str

    @classmethod
    def of(cls, folder: Path, spec: ModelSpec, name: str, revision: str | None = None) -> Base:
        """The model in a folder.

        Args:
            folder: with its weights and `config.json`.
            spec: of the model as it stands there, without a new task head.
            name: what others find it by.
            revision: of that name.
        """
        with Checkpoint(folder) as checkpoint:
            fingerprint = checkpoint.fingerprint
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(name, revision, fingerprint, spec_fingerprint(spec), (config.get("architectures") or [""])[0])

    def check(self, folder: Path, spec: ModelSpec, what: object) -> None:
        """Refuse another base model.

        Args:
            folder: of the model at hand.
            spec: of that model.
            what: the export.

        Raises:
            UserError: its weights or its configuration are others.
        """
        with Checkpoint(folder) as checkpoint:
            found, form = checkpoint.fingerprint, spec_fingerprint(spec)
        if (found, form) != (self.fingerprint, self.form):
            raise UserError(
                f"adapter {what}", value=f"made for {self.name} (weights {self.fingerprint}, form {self.form})",
                rule=f"{folder} has weights {found}, form {form}",
                remedy="Give it the base model that it was trained on, in the files that it was trained with",
            )  # fmt: skip

    def class_with(self, spec: ModelSpec) -> str:
        """The class of transformers that has the head of `spec`: another one than `architecture` where that is new."""
        if not spec.head.rows or spec.head.vocabulary:
            return self.architecture
        kind = "ForTokenClassification" if spec.head.select == "all" else "ForSequenceClassification"
        found = CLASS.match(self.architecture)
        return (found["family"] if found else "") + kind


def task_type(spec: ModelSpec) -> str | None:
    """What peft calls the task of a head; None where it has no name for it (words for a mask)."""
    if not spec.head.rows:
        return "FEATURE_EXTRACTION"
    if not spec.head.vocabulary:
        return "TOKEN_CLS" if spec.head.select == "all" else "SEQ_CLS"
    if spec.dec is None:
        return None
    return "CAUSAL_LM" if spec.enc is None else "SEQ_2_SEQ_LM"


def reads_last_token(spec: ModelSpec) -> bool:
    """Whether a label is read at the last token, which transformers finds by the configuration's id of padding."""
    return bool(spec.head.rows) and not spec.head.vocabulary and spec.head.select == "last"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the name `target`, and the place of an earlier export, once it is complete.

    Raises:
        UserError: something else than an export is there, or it cannot be written.
    """
    exported = any((target / name).exists() for name in (CONFIG_FILE, OWN_FILE))
    if target.exists() and not exported and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"export folder {target}", value="it holds something else", rule="an export has a folder of its own",
            remedy="Name another folder",
        )  # fmt: skip
    target = target.resolve()
    new, old = (target.with_name(f".{target.name}.{end}") for end in ("new", "old"))
    try:
        if old.exists() and not target.exists():  # a run ended between the two renames below
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            yield new
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"export folder {target}", value=getattr(error, "strerror", None) or error, rule="it can be written to",
            remedy="Free some space, or name another folder",
        ) from error  # fmt: skip
