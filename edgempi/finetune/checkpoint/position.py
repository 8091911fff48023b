"""What a checkpoint says of itself: to which model and technique it belongs, and where in the training it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgempi
from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.finetune.checkpoint.tensors import DamagedError, Seal
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

POSITION_FILE = "position.json"
FORMAT = 2


@dataclass(frozen=True)
class Identity:
    """What trained parameters belong to; a run reads the checkpoints of its own identity alone.

    Attributes:
        model: fingerprint of the backbone's weights (`models.checkpoint.Checkpoint.fingerprint`).
        spec: fingerprint of the model's form, a new task head included (`Identity.of`).
        tuning: the technique with its sizes.
        optimizer: its name, since its state is kept along.
        run: what else its losses follow from, by name: rows, their order, how tensors are updated.
    """

    model: str
    spec: str
    tuning: Tuning
    optimizer: str
    run: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: str, spec: ModelSpec, tuning: Tuning, optimizer: str, run: Mapping[str, Any] | None = None
    ) -> Identity:
        """The identity of a run that trains a model of this form; of `run`, values in JSON types."""
        return cls(model, spec_fingerprint(spec), tuning, optimizer, json.loads(json.dumps(run or {})))


@dataclass(frozen=True)
class Best:
    """The best score so far, and after which step it was measured."""

    score: float
    step: int


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: optimizer steps done in all.
        epoch: the epoch that is under way, from 0.
        batch: mini-batches of that epoch that are done.
        seed: of the data's order and of what was drawn at the start.
        order: fingerprint of the epoch's samples in their order (`order_fingerprint`).
        phase: of the epoch that is under way: whether the backbone runs in it, or its activations are read.
        best: None before the first evaluation.
        stale: evaluations since the best one.
        loss_sum: of the targets since the last step that was logged.
        targets: how many those are.
    """

    step: int
    epoch: int
    batch: int
    seed: int
    order: str
    best: Best | None = None
    stale: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    phase: str = ""

    def check_order(self, order: str) -> None:
        """Refuse to go on with other data.

        Args:
            order: fingerprint of this epoch's order, worked out anew.

        Raises:
            UserError: it is another one.
        """
        if order != self.order:
            raise UserError(
                f"training data of epoch {self.epoch}", value=f"order {order}",
                rule=f"the checkpoint of step {self.step} was made with order {self.order}",
                remedy="Resume with the same data, template, seed and batch size, or begin a run in another folder",
            )  # fmt: skip


def spec_fingerprint(spec: ModelSpec) -> str:
    """16 hexadecimal digits of a model's form."""
    return _digest(json.dumps(spec.as_dict(), sort_keys=True))


def order_fingerprint(samples: Iterable[int]) -> str:
    """16 hexadecimal digits of an epoch's samples in their order, by their identities (`cache.key.sample_id`)."""
    words = np.fromiter((sample & (1 << 64) - 1 for sample in samples), np.uint64)
    return hashlib.blake2b(words.astype("<u8").tobytes(), digest_size=8).hexdigest()


def write_about(folder: Path, identity: Identity, position: Position, files: Mapping[str, Seal]) -> None:
    """Write `position.json`, with the seals of the files beside it and a digest of its own."""
    about = {
        "format": FORMAT,
        "identity": asdict(identity),
        "position": asdict(position),
        "versions": {"edgempi": edgempi.__version__, "torch": torch.__version__},
        "files": {name: asdict(seal) for name, seal in files.items()},
    }
    about["digest"] = _digest(json.dumps(about, sort_keys=True))
    write_atomic(folder / POSITION_FILE, json.dumps(about, indent=2) + "\n")


def read_about(folder: Path) -> tuple[Identity, Position, dict[str, Seal]]:
    """What `write_about` wrote.

    Raises:
        DamagedError: it is not there, or not what was written.
        UserError: it is of a later format.
    """
    path = folder / POSITION_FILE
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = about.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedError(path, getattr(error, "strerror", None) or "no whole JSON", "it can be read") from error
    if digest != _digest(json.dumps(about, sort_keys=True)):
        raise DamagedError(path, "edited or damaged", "it is what was written")
    if about["format"] != FORMAT:
        raise UserError(
            f"training checkpoint {folder}", value=f"format {about['format']}", rule=f"this edgempi reads {FORMAT}",
            remedy="Resume with the version that wrote it",
        )  # fmt: skip
    found, position = about["identity"], about["position"]
    tuning = Tuning(**{**found["tuning"], "technique": Technique(found["tuning"]["technique"])})
    best = position["best"] and Best(**position["best"])
    files = {name: Seal(**seal) for name, seal in about["files"].items()}
    return Identity(**{**found, "tuning": tuning}), Position(**{**position, "best": best}), files


def check_identity(folder: Path, found: Identity, wanted: Identity) -> None:
    """Refuse a checkpoint of another run's kind.

    Raises:
        UserError: model, form, technique, sizes, optimizer or what else a run is known by differ; it names them.
    """
    ours, theirs = _flat(wanted), _flat(found)
    differing = [
        f"{name} {theirs.get(name)} (here {ours.get(name)})"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise UserError(
            f"training checkpoint {folder}", value=", ".join(differing),
            rule="a run is resumed with the model, technique, optimizer, rows and order that it was begun with",
            remedy="Use the settings of the run that wrote it, or another output folder",
        )  # fmt: skip


def _flat(identity: Identity) -> dict[str, object]:
    return {
        "model": identity.model, "spec": identity.spec, "optimizer": identity.optimizer,
        **asdict(identity.tuning), **identity.run,
    }  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
