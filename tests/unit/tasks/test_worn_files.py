"""Runs of `edgempi finetune` on one device that meet caches of other models, full disks and checkpoints cut short."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edgempi.cli import main
from edgempi.comm import lone_world
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.tasks.finetune import prepare
from edgempi.tasks.finetune_run import train_together
from models.worded import build_worded
from mpi.finetune import job

CLOSE = 1e-5
SPARE_BYTES = 32768
"""Left on a disk that is filled: for the log, and not for a checkpoint."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    build_worded("bert", folder)
    return folder


def _alone(config: Config) -> dict[str, Any]:
    return train_together(config, prepare(config), lone_world())


def _resumed(config: Config) -> Config:
    return replace(config, task=replace(config.task, resume=True))


def test_a_cache_of_another_model_is_not_read(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    moved = {name: tensor + 0.01 for name, tensor in tensors.items()}
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})

    def run(folder: str, which: Path, disk_bytes: int | None = None, cached: bool = True) -> dict[str, Any]:
        config = job(which, tmp_path / folder, "standalone", 1, cached=cached)
        return _alone(replace(config, cache=replace(config.cache, disk_bytes=disk_bytes)))

    def caches() -> set[Path]:
        return set((tmp_path / "cache").glob("*/*"))

    run("first", model)
    (mine,) = caches()
    plain, second = run("plain", other, cached=False), run("second", other)
    assert "train" in second["phases"]
    assert second["losses"] == pytest.approx(plain["losses"], rel=CLOSE)
    (its,) = caches() - {mine}
    # Under a budget there is no room for what others left.
    third = run("third", other, disk_bytes=1 << 30)
    assert "train" not in third["phases"]
    assert third["losses"] == pytest.approx(plain["losses"], rel=CLOSE)
    assert caches() == {its}
    its.rename(mine)
    with pytest.raises(UserError, match=r"activation cache .*model: cached with .*; a stale cache is not read"):
        run("fourth", model)


def test_a_checkpoint_that_is_cut_short_is_passed_over(model: Path, tmp_path: Path) -> None:
    config = job(model, tmp_path / "run", "standalone", 1)
    whole = _alone(config)
    folders = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(folders) > 1
    for number, folder in enumerate(reversed(folders)):
        file = folder / "trained.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        if number:
            continue
        with pytest.warns(RuntimeWarning, match="The one before it is tried"):
            again = _alone(_resumed(config))
        assert 0 < again["began_at"] < int(folder.name[11:])
        assert again["losses"] == pytest.approx(whole["losses"], rel=CLOSE)
        file.write_bytes(file.read_bytes()[:-10])  # the run has written it anew
    with (
        pytest.warns(RuntimeWarning, match="The one before it is tried"),
        pytest.raises(UserError, match="it holds a checkpoint that is whole"),
    ):
        _alone(_resumed(config))


Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A function that makes a file system of so many KiB."""
    made: list[Path] = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs takes root")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", folder], check=True)


def test_no_room_for_the_rows(
    model: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"model.path={model}", "technique=lora", "system=standalone", "cluster=local1"]
    for size, said in ((64, "generated rows in "), (256, "samples ")):
        run = disk(size) / "run"
        rows = ["finetune_data.generated_rows=1500", f"task.folder={run}"]
        assert main(["finetune", *words, *rows]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("edgempi: "))
        assert said in line and "No space left on device" in line and "set task.folder" in line


@pytest.mark.filterwarnings("ignore:activation cache")
def test_no_room_for_the_cache(model: Path, disk: Disk, tmp_path: Path) -> None:
    plain = _alone(job(model, tmp_path / "plain", "standalone", 1))
    config = job(model, tmp_path / "run", "standalone", 1, cached=True)
    found = _alone(replace(config, cache=replace(config.cache, folder=str(disk(64)))))
    assert found["losses"] == pytest.approx(plain["losses"], rel=CLOSE)
    assert found["ranks"][0]["cache"]["refused"] > 0


def test_no_room_for_a_checkpoint(model: Path, disk: Disk) -> None:
    folder = disk(512)
    config = job(model, folder / "run", "standalone", 1)
    payload = prepare(config)
    room = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - SPARE_BYTES))
    with pytest.raises(UserError, match=r"training checkpoint .*: No space left on device; .* Free some space"):
        train_together(config, payload, lone_world())
    (folder / "ballast").unlink()
    again = train_together(config, payload, lone_world())
    assert len(again["losses"]) == 9
