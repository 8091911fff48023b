"""What the profiler prepares, and the tables that a person reads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgempi.cluster.profile_text import profile_to_dict
from edgempi.config.schema import Config, DataConfig, OutputConfig, TaskConfig
from edgempi.errors import UserError
from edgempi.plan.spec import ModelSpec
from edgempi.tasks.profile import prepare, report
from unit.cluster.test_profile_text import example


def test_the_profile_goes_into_the_runs_folder_or_where_the_user_says(tmp_path: Path) -> None:
    run = OutputConfig(directory=str(tmp_path))
    payload = prepare(Config(output=run))
    assert payload["save"] == f"{tmp_path}/profile.yaml"
    assert ModelSpec.from_dict(payload["spec"]).generates
    named = prepare(Config(output=run, task=TaskConfig("profile", save=f"{tmp_path}/mine.yaml")))
    assert named["save"] == f"{tmp_path}/mine.yaml"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.save: .*nowhere/profile.yaml; its folder is there"):
        prepare(Config(task=TaskConfig("profile", save=f"{tmp_path}/nowhere/profile.yaml")))


def test_a_length_beyond_the_models_positions() -> None:
    with pytest.raises(UserError, match="measured length: 1000000 tokens"):
        prepare(Config(data=DataConfig(length=10**6)))


def test_the_tables_say_what_was_measured() -> None:
    result = profile_to_dict(example())
    block = {"block": "mlp", "share": 0.25, "measured_s": 0.002, "fitted_s": 0.0021}
    off = {"median": 0.01, "worst": 0.12}
    for device in result["devices"]:
        residuals = {"linear": off, "attention": off}
        device.update(residuals=residuals, blocks=[block], route="plain", slowdown=1.5, rounds=3)
    console = Console(file=io.StringIO(), width=200)
    report({**result, "length": 284, "training": None, "saved": "there.yaml"}, console)
    text = console.file.getvalue()
    assert " 100.0 " in text  # GFLOP/s of 1e-11 s per operation
    assert " 40.0 " in text  # GB/s of 1e-10 s per fp32 weight
    assert " 1, 12, 1, 12" in text
    assert "2.00        2.10      +5.0" in text
    assert "big to small" in text
    assert "1,000.0 Mbit/s" in text
    assert "cluster.profile=there.yaml" in text
