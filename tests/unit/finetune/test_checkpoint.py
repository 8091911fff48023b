"""Training checkpoints: whole or not at all, passed over where damaged, refused where they do not belong."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.checkpoint import (
    Best,
    Checkpoints,
    Gathered,
    Identity,
    Position,
    load_optimizer,
    load_order,
    load_trained,
    order_fingerprint,
)
from edgempi.finetune.checkpoint import folder as folder_module
from edgempi.finetune.checkpoint.tensors import DamagedError
from edgempi.plan.training.technique import Technique, Tuning
from unit.finetune import toys

IDENTITY = Identity("beef", "cafe", Tuning(Technique.lora, rank=4), "adamw")
KINDS = ("exp_avg", "exp_avg_sq", "step")
NAMES = ("enc.0.attention.q.lora.a", "enc.0.attention.q.lora.b", "enc.1.attention.q.lora.a", "head.out.bias")


def _tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
    shapes = ((4, 6), (6, 4), (0, 3), ())
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape, dtype in zip(NAMES, shapes, dtypes, strict=True)
    }


def _at(step: int, best: Best | None = None) -> Position:
    return Position(step, step // 10, step % 10, seed=7, order=order_fingerprint(range(step)), best=best)


def _save(folder: Path, *steps: int, keep_last: int = 9) -> Checkpoints:
    kept = Checkpoints(folder, IDENTITY, keep_last)
    for step in steps:
        kept.save(_at(step), _tensors(step), {f"step.{NAMES[0]}": torch.tensor(float(step))})
    return kept


def test_round_trip(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run" / "checkpoints", IDENTITY)
    assert kept.newest() is None and kept.best() is None
    position = _at(12, Best(88.5, 12))
    trained = _tensors()
    folder = kept.save(position, trained, {f"step.{NAMES[0]}": torch.tensor(12.0)})
    assert folder.name == "checkpoint-12" and (folder.parent / "latest").read_text() == "checkpoint-12\n"

    found = kept.newest()
    assert found is not None and (found.folder, found.position, found.passed_over) == (folder, position, ())
    loaded = load_trained(folder, NAMES)
    assert all(torch.equal(loaded[name], trained[name]) and loaded[name].dtype == trained[name].dtype for name in NAMES)
    assert load_optimizer(folder, [f"step.{NAMES[0]}"])[f"step.{NAMES[0]}"] == 12.0
    # What anyone else reads it with reads it too.
    assert torch.equal(load_file(folder / "trained.safetensors")[NAMES[1]], trained[NAMES[1]])
    with pytest.raises(UserError, match=r"no enc\.9"):
        load_trained(folder, ["enc.9.attention.q.lora.a"])


def test_only_what_is_asked_for_is_fetched_and_read(tmp_path: Path) -> None:
    trained, asked = _tensors(), []

    def gather(name: str) -> Tensor:
        asked.append(name)
        return trained[name]

    folder = Checkpoints(tmp_path, IDENTITY).save(_at(1), Gathered(NAMES, gather), {})
    assert asked == list(NAMES)
    # Damage to a tensor concerns those alone that read it.
    _flip(folder / "trained.safetensors", trained[NAMES[0]].numpy().tobytes())
    assert torch.equal(load_trained(folder, NAMES[1:])[NAMES[1]], trained[NAMES[1]])
    with pytest.raises(DamagedError, match="other bytes"):
        load_trained(folder, NAMES[:1])


def _flip(path: Path, where: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(where)] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: _cut(folder / "trained.safetensors"), "it was written with"),
        (lambda folder: _cut(folder / "optimizer.safetensors"), "it was written with"),
        (lambda folder: os.truncate(folder / "position.json", 40), "no whole JSON"),
        (lambda folder: _flip(folder / "position.json", b'"step": 30'), "no whole JSON"),
        (lambda folder: _flip(folder / "position.json", b"30"), "edited or damaged"),
        (lambda folder: _flip(folder / "trained.safetensors", b"lora"), "another header"),
        (lambda folder: (folder / "trained.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "position.json").unlink(), "No such file"),
    ],
)
def test_damage_is_passed_over_and_named(damage: object, why: str, tmp_path: Path) -> None:
    kept = _save(tmp_path, 10, 20, 30)
    assert callable(damage)
    damage(tmp_path / "checkpoint-30")
    with pytest.warns(RuntimeWarning, match="checkpoint-30"):
        found = kept.newest()
    assert found is not None and found.position == _at(20)
    assert len(found.passed_over) == 1 and why in found.passed_over[0]
    # What is saved next replaces the one that was given up.
    kept.save(_at(25), _tensors(), {})
    assert kept.steps == (10, 20, 25)
    for step in kept.steps:
        _cut(tmp_path / f"checkpoint-{step}" / "trained.safetensors")
    with pytest.warns(RuntimeWarning):
        assert kept.newest() is None


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, IDENTITY, keep_last=2)
    for step in (1, 2, 3, 4, 5):
        kept.save(_at(step, Best(0.5, min(step, 2))), _tensors(step), {})
    assert kept.steps == (2, 4, 5)
    best = kept.best()
    assert best is not None and best.position.step == 2
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{n}" for n in (2, 4, 5)} | {"latest", "best"}
    with pytest.raises(UserError, match="at least the last"):
        Checkpoints(tmp_path, IDENTITY, keep_last=0)


def test_the_best_is_the_one_that_the_latest_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before `best` was written, after everything else: nothing but the position is believed."""
    kept = Checkpoints(tmp_path, IDENTITY)
    kept.save(_at(1, Best(0.5, 1)), _tensors(1), {})
    written = folder_module.write_atomic

    def killed(path: Path, text: str) -> None:
        if path.name == "best":
            raise KeyboardInterrupt
        written(path, text)

    monkeypatch.setattr(folder_module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save(_at(2, Best(0.7, 2)), _tensors(2), {})
    monkeypatch.undo()
    assert (tmp_path / "best").read_text() == "checkpoint-1\n"
    best = kept.best()
    assert best is not None and best.position.step == 2
    kept.save(_at(3, Best(0.7, 2)), _tensors(3), {})
    kept.save(_at(4, Best(0.7, 2)), _tensors(4), {})
    assert kept.steps == (2, 3, 4)


def test_a_best_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    kept = _save(tmp_path, 1)
    kept.save(_at(5, Best(0.9, 4)), _tensors(), {})
    found = kept.newest()
    assert found is not None and found.position == _at(5)
    assert kept.best() is None


def test_the_order_of_an_epoch_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, IDENTITY)
    first = np.array([3, 0, 2, 1], np.int64)
    kept.save(_at(12), _tensors(), {}, first)
    kept.save(_at(20), _tensors(), {})
    found = load_order(tmp_path / "checkpoint-12")
    assert found is not None and (found == first).all() and found.dtype == np.int64
    assert load_order(tmp_path / "checkpoint-20") is None
    _cut(tmp_path / "checkpoint-12" / "order.safetensors")
    with pytest.raises(DamagedError, match="it was written with"):
        load_order(tmp_path / "checkpoint-12")


def test_a_step_is_saved_anew(tmp_path: Path) -> None:
    kept = _save(tmp_path, 10, 10)
    kept.save(_at(10), _tensors(77), {})
    assert torch.equal(load_trained(tmp_path / "checkpoint-10", NAMES[:1])[NAMES[0]], _tensors(77)[NAMES[0]])
    assert kept.steps == (10,)


def test_a_crash_leaves_what_was_there(tmp_path: Path) -> None:
    kept = _save(tmp_path, 10)

    def lost(name: str) -> Tensor:
        if name == NAMES[2]:
            raise ConnectionError(name)
        return _tensors()[name]

    with pytest.raises(ConnectionError):
        kept.save(_at(20), Gathered(NAMES, lost), {})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "latest"}

    # Killed while writing, while deleting, and between the two renames that replace a folder.
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / ".checkpoint-20.new")
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / ".checkpoint-5.dropped")
    (tmp_path / "checkpoint-10").rename(tmp_path / ".checkpoint-10.old")
    found = kept.newest()
    assert found is not None and found.position == _at(10)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "latest"}


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _save(tmp_path, 10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "write_tensors", full)
    with pytest.raises(UserError, match="No space left"):
        kept.save(_at(20), _tensors(), {})
    assert kept.steps == (10,) and kept.newest() is not None


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, model="dead"),
        replace(IDENTITY, spec="dead"),
        replace(IDENTITY, optimizer="sgd"),
        replace(IDENTITY, tuning=Tuning(Technique.parallel_adapter)),
        replace(IDENTITY, tuning=Tuning(Technique.lora, rank=8)),
        replace(IDENTITY, run={"rows": 12}),
    ],
)
def test_another_run_is_refused(other: Identity, tmp_path: Path) -> None:
    _save(tmp_path, 10)
    with pytest.raises(UserError, match="resumed with the model, technique"):
        Checkpoints(tmp_path, other).newest()


def test_what_differs_is_named(tmp_path: Path) -> None:
    spec = toys.spec(1, 0)
    known = {"rows": 12, "optimizer.betas": (0.9, 0.99), "finetune_data.batch": 5}
    ours = Identity.of("beef", spec, IDENTITY.tuning, "adamw", known)
    Checkpoints(tmp_path, ours).save(_at(10), _tensors(), {})
    assert Checkpoints(tmp_path, Identity.of("beef", spec, IDENTITY.tuning, "adamw", known)).newest() is not None
    other = Identity.of("beef", spec, IDENTITY.tuning, "adamw", known | {"rows": 9, "finetune_data.batch": 4})
    with pytest.raises(UserError, match=r"rows 12 \(here 9\), finetune_data.batch 5 \(here 4\)"):
        Checkpoints(tmp_path, other).newest()


def test_other_data_is_refused() -> None:
    position = replace(_at(3), order=order_fingerprint([5, -1, 2**64 - 2]))
    position.check_order(order_fingerprint([5, 2**64 - 1, -2]))
    with pytest.raises(UserError, match="same data"):
        position.check_order(order_fingerprint([5, 2, 9]))
