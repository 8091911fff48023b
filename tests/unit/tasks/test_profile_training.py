"""Training measured by the profiler: added to a file, kept there, planned with, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from edgempi.cluster.profile import ClusterProfile, Device, Link
from edgempi.cluster.profile_text import load_profile, note_of, profile_to_yaml
from edgempi.cluster.training_times import load_training
from edgempi.comm import World, lone_world
from edgempi.config.cluster import ClusterConfig, DeviceConfig
from edgempi.config.finetune import FinetuneDataConfig, SourceName
from edgempi.config.schema import Config, TaskConfig
from edgempi.errors import UserError
from edgempi.plan.spec import ModelSpec
from edgempi.tasks import Job, finetune, profile
from models.worded import build_worded
from mpi.finetune import job
from unit.cluster.test_training_times import PROFILE
from unit.comm.threads import on_ranks

LAN = ClusterProfile(
    (Device("device0", "localhost"), Device("device1", "localhost")), (Link(0, 1, 1e-4, 1e9), Link(1, 0, 1e-4, 1e9))
)
ASKED = TaskConfig(name="profile", training=True, seconds=0.05)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with tokenizers."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("bert", "llama", "t5")}
    for name, folder in found.items():
        build_worded(name, folder)
    return found


def _config(folders: dict[str, Path], path: Path, name: str = "bert", **more: Any) -> Config:
    """Asks for the training times of a run that caches."""
    asked = job(folders[name], path.parent / "run", "pac", 2, cached=True)
    return replace(asked, **{"task": ASKED, "cluster": replace(asked.cluster, profile=str(path)), **more})


def _run(config: Config) -> dict[str, Any]:
    """On two ranks."""
    payload = json.loads(json.dumps(profile.prepare(config)))

    def run(world: World) -> dict[str, Any]:
        torch.set_num_threads(1)
        with torch.inference_mode(False):
            return profile.run(Job(config, payload), world)

    first, second = on_ranks(2, run, timeout_s=60)
    assert second == {}
    return first


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file that had other times before, and what was said."""
    path = tmp_path_factory.mktemp("measured") / "profile.yaml"
    path.write_text(profile_to_yaml(LAN, "Measured before.", [PROFILE]))
    return path, _run(_config(folders, path))


def test_times_are_added_to_a_file(measured: tuple[Path, dict[str, Any]], folders: dict[str, Path]) -> None:
    path, result = measured
    assert result["saved"] == str(path)
    before, new = load_training(str(path))
    assert before == PROFILE
    assert (new.purpose.technique, new.purpose.optimizer, new.purpose.tokens) == ("parallel_adapter", "sgd", 64)
    for device, said in zip(new.devices, result["training"]["devices"], strict=True):
        kinds = {"enc.first", "enc.inner", "enc.last"}
        assert {phase: set(times) for phase, times in device.layers.items()} == {"train": kinds, "cached": kinds}
        assert all(
            layer.forward.seconds(4) > 0 and layer.backward.seconds(4) > 0
            for times in device.layers.values()
            for layer in times.values()
        )
        assert said["rounds"] >= 3
    assert load_profile(str(path)) == LAN
    assert note_of(path.read_text()) == "Measured before."


def test_newer_times_replace_those_of_the_same_purpose(
    measured: tuple[Path, dict[str, Any]], folders: dict[str, Path], tmp_path: Path
) -> None:
    path, target = measured[0], tmp_path / "newer.yaml"
    first = load_training(str(path))
    config = _config(folders, path)
    _run(replace(config, task=replace(config.task, save=str(target))))
    newer = load_training(str(target))
    assert [times.purpose for times in newer] == [times.purpose for times in first]
    assert newer[1].devices != first[1].devices
    assert load_training(str(path)) == first


def test_a_run_is_planned_with_them(measured: tuple[Path, dict[str, Any]], folders: dict[str, Path]) -> None:
    config = replace(_config(folders, measured[0]), task=TaskConfig("finetune"))
    run = replace(config, output=replace(config.output, directory=str(measured[0].parent / "run")))
    payload = finetune.prepare(run)
    assert payload["assumed"] is None
    assert payload["work"]["tokens"] == 64
    assert 0 < payload["data"]["mean_tokens"]["tokens"] <= 64
    assert payload["predicted_s"]["train"] > 0
    shorter = replace(run, finetune_data=replace(run.finetune_data, max_tokens=32))
    said = r"training times: measured for tokens 64; times are for tokens 32\. Run edgempi profile task\.training=true"
    with pytest.raises(UserError, match=said):
        finetune.prepare(shorter)
    with pytest.raises(UserError, match=r"measured for sizes .*'reduction': 2.*; times are for sizes .*'reduction': 4"):
        finetune.prepare(replace(run, technique=replace(run.technique, reduction=4)))


def test_a_file_without_them_says_how_to_get_them(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(LAN))
    run = replace(_config(folders, path), task=TaskConfig("finetune", folder=str(tmp_path / "run")))
    assumed = finetune.prepare(run)["assumed"]
    assert "speeds (3, 1), links as measured." in assumed
    assert f"run edgempi profile task.training=true cluster.profile={path} with this run's other overrides." in assumed


def test_a_new_file_is_measured_whole_and_keeps_its_training(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    alone = _config(folders, path, cluster=ClusterConfig(ranks=1, profile=str(path)))
    payload = profile.prepare(alone)
    assert payload["base"] is None
    result = profile.run(Job(alone, payload), lone_world())
    (training,) = load_training(str(path))
    assert load_profile(str(path)).measured
    plain = replace(alone, task=TaskConfig("profile", save=str(path), seconds=0.05))
    profile.run(Job(plain, profile.prepare(plain)), lone_world())
    assert load_training(str(path)) == (training,)
    # Of another device they would be wrong.
    other = replace(plain, cluster=ClusterConfig(devices={"other": DeviceConfig()}))
    profile.run(Job(other, profile.prepare(other)), lone_world())
    assert load_training(str(path)) == ()

    console = Console(file=io.StringIO(), width=200)
    profile.report(result, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "Blocks of one layer", "A layer in training by parallel_adapter, with the backbone (rows of 64 tokens)",
        "from the cache", "enc.inner", "A step of sgd", f"cluster.profile={path}",
    ):  # fmt: skip
        assert part in said


def test_what_is_asked_is_what_a_run_asks(folders: dict[str, Path], tmp_path: Path) -> None:
    def asked(name: str, **rows: Any) -> dict[str, Any]:
        found = profile.prepare(_config(folders, tmp_path / "p.yaml", name, finetune_data=FinetuneDataConfig(**rows)))
        training: dict[str, Any] = found["training"]
        return training

    table = {"source": SourceName.table, "path": "none.csv", "texts": ["text"], "max_tokens": 20}
    assert asked("bert", task="stsb", max_tokens=20)["purpose"]["model"].endswith("head of 1")
    named = asked("bert", label="label", labels=["a", "b", "c"], **table)
    assert named["purpose"]["model"].endswith("head of 3")
    words = asked("llama", source=SourceName.jsonl, path="none.jsonl", max_tokens=20)
    assert ModelSpec.from_dict(words["spec"]).head.vocabulary
    both = asked("t5", max_tokens=20, max_target_tokens=6)
    assert (both["work"]["tokens"], both["work"]["memory_tokens"]) == (6, 20)


def _few_devices(config: Config) -> Config:
    return replace(config, cluster=replace(config.cluster, devices={"device0": DeviceConfig()}))


def _long_rows(config: Config) -> Config:
    return replace(config, finetune_data=replace(config.finetune_data, max_tokens=128))


def _odd_width(config: Config) -> Config:
    return replace(config, technique=replace(config.technique, reduction=7))


def _nowhere(config: Config) -> Config:
    return replace(config, cluster=replace(config.cluster, profile="/nowhere/at/all.yaml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_few_devices, r"measured on device0, device1; the cluster is device0.* not there yet is measured whole"),
        (_long_rows, r"rows to train on: up to 128 tokens; the model has positions for 96"),
        (_odd_width, r"side network reduction: 7"),
        (_nowhere, r"cluster.profile: /nowhere/at/all.yaml; its folder is there"),
    ],
)
def test_what_is_refused_before_any_rank_starts(
    change: Callable[[Config], Config], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(LAN))
    with pytest.raises(UserError, match=said):
        profile.prepare(change(_config(folders, path)))


def test_a_file_that_is_no_profile_is_not_written_over(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Milk, bread.\n")
    config = _config(folders, tmp_path / "none.yaml")
    config = replace(config, cluster=replace(config.cluster, profile=None), task=replace(ASKED, save=str(path)))
    with pytest.raises(UserError, match=r"notes.txt: profile file"):
        profile.prepare(config)


def test_a_device_without_memory_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(LAN))
    config = _config(folders, path)
    small = {name: replace(device, memory_budget_bytes=10**7) for name, device in config.cluster.devices.items()}
    with pytest.raises(UserError, match=r"device0, memory to measure in: 8 MB; a layer with 2 rows takes"):
        _run(replace(config, cluster=replace(config.cluster, devices=small)))
