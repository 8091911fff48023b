"""The checkpoints of a run: folders `checkpoint-<step>` that appear whole, are checked when read, and are pruned.

    trained.safetensors     the trained parameters, by edgempi's names
    optimizer.safetensors   what the optimizer keeps for them (see `optimizer`)
    position.json           where the run stood, to what it belongs, and the seals of both files

`latest` and `best` are text files with a folder's name. A folder is written under a temporary name, made durable and
renamed, so a crash leaves either the folder or nothing of that name.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.finetune.cache.files import sync_folder
from edgempi.finetune.checkpoint.position import Identity, Position, check_identity, read_about, write_about
from edgempi.finetune.checkpoint.tensors import DamagedError, Seal, TensorFile, write_tensors

TRAINED_FILE = "trained.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "checkpoint-"
LATEST, BEST = "latest", "best"
NEW, OLD, DROPPED = ".new", ".old", ".dropped"
"""Ends of the names of folders that are being written, replaced and deleted."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole.

    Attributes:
        folder: for `load_trained` and `load_optimizer`.
        position: where the run stood.
        passed_over: why later ones could not be used, one line each.
    """

    folder: Path
    position: Position
    passed_over: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run, used by the one process that writes them.

    Args:
        folder: that holds them; made with the first one.
        identity: of the run.
        keep_last: how many of the latest ones stay, beside the best.

    Raises:
        UserError: `keep_last` is below one.
    """

    def __init__(self, folder: Path, identity: Identity, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise UserError(
                "checkpoints to keep", value=keep_last, rule="at least the last one stays", remedy="Set it to 2, say"
            )
        self.folder, self.identity = folder, identity
        self._keep_last = keep_last

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that are there, rising, damaged ones included."""
        found = (path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())
        return tuple(sorted(int(step) for step in found if step.isdecimal()))

    def save(
        self, position: Position, trained: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], best: bool = False
    ) -> Path:
        """Write a checkpoint, point to it and prune.

        Those of later steps go: they belong to a continuation that was given up.

        Args:
            position: where the run stands.
            trained: all trained parameters of the model; each is asked for once, in order.
            optimizer: what the optimizer keeps for them, asked for after them.
            best: whether this is the best so far.

        Raises:
            UserError: it cannot be written; those before it are as they were.
        """
        target = self.folder / f"{PREFIX}{position.step}"
        new, old = (target.with_name(f".{target.name}{end}") for end in (NEW, OLD))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
            try:
                new.mkdir()
                parts = {TRAINED_FILE: trained, OPTIMIZER_FILE: optimizer}
                seals = {name: write_tensors(new / name, tensors) for name, tensors in parts.items()}
                write_about(new, self.identity, position, seals)
                sync_folder(new)
                if target.exists():
                    target.rename(old)
                new.rename(target)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            sync_folder(self.folder)
            write_atomic(self.folder / LATEST, target.name + "\n")
            if best:
                write_atomic(self.folder / BEST, target.name + "\n")
            sync_folder(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            self._prune(position.step)
        except (ConnectionError, TimeoutError):  # of who was asked for a tensor
            raise
        except OSError as error:
            raise UserError(
                f"training checkpoint {target}", value=error.strerror, rule="its folder can be written to",
                remedy="Free some space, keep fewer checkpoints, or choose another output folder",
            ) from error  # fmt: skip
        return target

    def newest(self) -> Found | None:
        """The latest checkpoint that is whole, all its bytes read; damaged ones are passed over with a warning.

        Raises:
            UserError: it belongs to another model, technique or optimizer.
        """
        self._tidy()
        passed_over: list[str] = []
        for step in reversed(self.steps):
            folder = self.folder / f"{PREFIX}{step}"
            try:
                return Found(folder, self._checked(folder), tuple(passed_over))
            except DamagedError as error:
                passed_over.append(f"{error.what}: {error.value}; {error.rule}")
                warnings.warn(f"{passed_over[-1]}. The one before it is tried", RuntimeWarning, stacklevel=2)
        return None

    def best(self) -> Found | None:
        """The checkpoint that scored best, checked like `newest`; None where none was marked.

        Raises:
            UserError: it is damaged, or belongs to another model, technique or optimizer.
        """
        folder = self._pointed(BEST)
        return None if folder is None else Found(folder, self._checked(folder))

    def _checked(self, folder: Path) -> Position:
        identity, position, seals = read_about(folder)
        check_identity(folder, identity, self.identity)
        for name, seal in seals.items():
            with TensorFile(folder / name, seal) as file:
                file.check()
        return position

    def _pointed(self, pointer: str) -> Path | None:
        try:
            name = (self.folder / pointer).read_text(encoding="utf-8").strip()
        except OSError:
            return None
        folder = self.folder / Path(name).name
        return folder if folder.name.startswith(PREFIX) and folder.is_dir() else None

    def _prune(self, step: int) -> None:
        best = self._pointed(BEST)
        earlier = [other for other in self.steps if other <= step]
        for other in self.steps:
            folder = self.folder / f"{PREFIX}{other}"
            if other > step or (other not in earlier[-self._keep_last :] and folder != best):
                # Renamed first: what is half deleted is no checkpoint.
                dropped = folder.rename(folder.with_name(f".{folder.name}{DROPPED}"))
                shutil.rmtree(dropped, ignore_errors=True)

    def _tidy(self) -> None:
        """Clear away what a crash has left."""
        for end in (NEW, DROPPED):
            for left in self.folder.glob(f".{PREFIX}*{end}"):
                shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(f".{PREFIX}*{OLD}"):
            target = left.with_name(left.name.removeprefix(".").removesuffix(OLD))
            if target.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:  # it ended between the two renames
                left.rename(target)


def load_trained(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Trained parameters of one checkpoint, in the dtype that they were trained in; others are not read.

    Args:
        folder: `checkpoint-<step>`.
        names: those of this device.

    Raises:
        DamagedError: the file, or one of these, is not what was written.
        UserError: the checkpoint has no parameter of such a name.
    """
    return _load(folder, TRAINED_FILE, names)


def load_optimizer(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """What the optimizer kept (`optimizer_names`), for `restore_optimizer`; raises as `load_trained`."""
    return _load(folder, OPTIMIZER_FILE, names)


def _load(folder: Path, part: str, names: Iterable[str]) -> dict[str, Tensor]:
    _, _, seals = read_about(folder)
    with TensorFile(folder / part, seals.get(part, Seal(0, ""))) as file:
        names = list(names)
        if missing := sorted(set(names) - set(file.names)):
            raise UserError(
                f"training checkpoint {folder}", value=f"no {missing[0]}", rule=f"{part} has all that is trained",
                remedy="Resume with the settings that it was written with",
            )  # fmt: skip
        return {name: file.read(name) for name in names}
