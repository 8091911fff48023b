"""The checkpoints of a run: folders `checkpoint-<step>` that appear whole, are checked when read, and are pruned.

    trained.safetensors     the trained parameters, by edgempi's names
    optimizer.safetensors   what the optimizer keeps for them (see `optimizer`)
    order.safetensors       within an epoch, the order of its samples: on other devices it could not be made again
    position.json           where the run stood, to what it belongs, and the seals of the other files

A folder is written under a temporary name, made durable and renamed, so a crash leaves either the folder or nothing of
that name. Which one is the latest follows from the names, which one was best from the latest's position; `latest` and
`best` are text files that say so to people, and are read by nobody else.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.finetune.cache.files import sync_folder
from edgempi.finetune.checkpoint.position import Identity, Position, check_identity, read_about, write_about
from edgempi.finetune.checkpoint.tensors import DamagedError, Seal, TensorFile, write_tensors

TRAINED_FILE = "trained.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
ORDER_FILE, ORDER = "order.safetensors", "order"
PREFIX = "checkpoint-"
LATEST, BEST = "latest", "best"
NEW, OLD, DROPPED = ".new", ".old", ".dropped"
"""Ends of the names of folders that are being written, replaced and deleted."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole.

    Attributes:
        folder: for `load_trained` and `load_optimizer`.
        position: where the run stood; without its best where the checkpoint of that is gone.
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
        self, position: Position, trained: Mapping[str, Tensor], optimizer: Mapping[str, Tensor],
        order: np.ndarray | None = None,
    ) -> Path:  # fmt: skip
        """Write a checkpoint, point to it and prune.

        Those of later steps go: they belong to a continuation that was given up.

        Args:
            position: where the run stands; this is the best so far if it says so.
            trained: all trained parameters of the model; each is asked for once, in order.
            optimizer: what the optimizer keeps for them, asked for after them.
            order: of the samples of the epoch that is under way, (count,) of int64; None between two.

        Raises:
            UserError: it cannot be written; those before it are as they were.
        """
        target = self._folder(position.step)
        new, old = (target.with_name(f".{target.name}{end}") for end in (NEW, OLD))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tidy()
            try:
                new.mkdir()
                parts: dict[str, Mapping[str, Tensor]] = {TRAINED_FILE: trained, OPTIMIZER_FILE: optimizer}
                if order is not None:
                    parts[ORDER_FILE] = {ORDER: torch.from_numpy(order)}
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
            if position.best is not None and position.best.step == position.step:
                write_atomic(self.folder / BEST, target.name + "\n")
            sync_folder(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            self._prune(position)
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
            folder = self._folder(step)
            try:
                return Found(folder, self._with_best(self._checked(folder)), tuple(passed_over))
            except DamagedError as error:
                passed_over.append(f"{error.what}: {error.value}; {error.rule}")
                warnings.warn(f"{passed_over[-1]}. The one before it is tried", RuntimeWarning, stacklevel=2)
        return None

    def best(self) -> Found | None:
        """The checkpoint that scored best so far, checked like `newest`; None where none did, or it is gone.

        Raises:
            UserError: it is damaged, or belongs to another model, technique or optimizer.
        """
        newest = self.newest()
        if newest is None or newest.position.best is None:
            return None
        folder = self._folder(newest.position.best.step)
        return newest if folder == newest.folder else Found(folder, self._checked(folder))

    def _checked(self, folder: Path) -> Position:
        identity, position, seals = read_about(folder)
        check_identity(folder, identity, self.identity)
        for name, seal in seals.items():
            with TensorFile(folder / name, seal) as file:
                file.check()
        return position

    def _folder(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step}"

    def _with_best(self, position: Position) -> Position:
        """Without its best where that was made by a continuation that is given up, and has replaced the one before."""
        if position.best is None or self._folder(position.best.step).is_dir():
            return position
        return replace(position, best=None)

    def _prune(self, position: Position) -> None:
        best = None if position.best is None else position.best.step
        earlier = [other for other in self.steps if other <= position.step]
        for other in self.steps:
            folder = self._folder(other)
            if other > position.step or (other not in earlier[-self._keep_last :] and other != best):
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
    """What the optimizer kept (`optimizer_names`), for `optim.Updater.load`; raises as `load_trained`."""
    return _load(folder, OPTIMIZER_FILE, names)


def load_order(folder: Path) -> np.ndarray | None:
    """The order of the epoch within which a checkpoint was made, (count,) of int64; None where it is none's."""
    _, _, seals = read_about(folder)
    if ORDER_FILE not in seals:
        return None
    with TensorFile(folder / ORDER_FILE, seals[ORDER_FILE]) as file:
        found: np.ndarray = file.read(ORDER).numpy()
        return found


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
