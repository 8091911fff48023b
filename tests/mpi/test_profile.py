"""The profiler through the parent and its ranks, and its file given back to a configuration."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from edgempi.cluster.known import known_profile
from edgempi.config.cluster import ClusterConfig
from edgempi.tasks.finetune import report
from models.worded import build_worded

pytestmark = pytest.mark.mpi


def test_a_profile_is_measured_saved_and_used(run_edgempi, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    done = run_edgempi("profile", "--json", "data.length=16", "task.seconds=0.2", f"task.save={path}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["saved"] == str(path)
    found = known_profile(ClusterConfig(ranks=2, profile=str(path)))
    assert found.measured
    assert found.weight_dtype == "fp32"
    for device, said in zip(found.devices, result["devices"], strict=True):
        assert device.times is not None
        assert device.memory is not None
        assert 50e6 < device.memory.import_bytes < 2e9
        assert device.times.linear.seconds(16, 64, 64) > 0
        assert {block["block"] for block in said["blocks"]} == {"attention", "mlp", "connective"}


def test_training_is_measured_and_fine_tuned_with(run_edgempi, tmp_path: Path) -> None:
    build_worded("t5", tmp_path / "model")
    path = tmp_path / "profile.yaml"
    asked = (
        f"model.path={tmp_path / 'model'}", f"cluster.profile={path}", "technique.reduction=2",
        "finetune_data.max_tokens=48", "finetune_data.max_target_tokens=6",
    )  # fmt: skip
    done = run_edgempi("profile", "--json", "task.training=true", "data.length=16", "task.seconds=0.2", *asked)
    assert done.returncode == 0, done.stderr
    assert {device["device"] for device in json.loads(done.stdout)["training"]["devices"]} == {"device0", "device1"}
    assert known_profile(ClusterConfig(ranks=2, profile=str(path))).measured

    rows = ("finetune_data.generated_rows=12", "finetune_data.batch=4", "cache.enabled=true", "optimizer.epochs=2")
    folders = (f"cache.folder={tmp_path / 'cache'}", f"task.folder={tmp_path / 'run'}")
    done = run_edgempi("finetune", "--json", "system.after=in_place", *asked, *rows, *folders)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["assumed"] is None
    assert found["plan"]["phases"][0]["step_s"] == found["steps"]["train"]["predicted_s"]
    for phase in ("train", "cached"):
        assert found["steps"][phase]["measured_s"] > 0
        assert found["steps"][phase]["predicted_s"] > 0
    said = io.StringIO()
    report(found, Console(file=said, width=200))
    assert "predicted from measured times for rows of 48 and 6 tokens" in said.getvalue()
