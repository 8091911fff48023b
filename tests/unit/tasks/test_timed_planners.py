"""`edgempi plan` with planners that need a profile: what they refuse, and what they tell."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgempi.cluster.profile import ClusterProfile
from edgempi.cluster.profile_text import profile_to_yaml
from edgempi.config.cluster import ClusterConfig
from edgempi.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PlannerConfig,
    PlannerName,
    Sharing,
    TaskConfig,
    WeightDtype,
    WeightsConfig,
    WireConfig,
    WireDtype,
)
from edgempi.errors import UserError
from edgempi.tasks import plan as task
from unit.plan.profiles import cluster

DATA = DataConfig(length=16, max_new_tokens=4)


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """A file as if two local ranks had been measured."""
    made = cluster([2.0, 1.0], 1e8)
    named = [replace(device, name=f"device{rank}", host="localhost") for rank, device in enumerate(made.devices)]
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(ClusterProfile(tuple(named), made.links, "fp32")))
    return str(path)


def config(name: PlannerName, profile: str | None, **more: object) -> Config:
    return Config(
        model=ModelConfig("assistant"),
        cluster=ClusterConfig(ranks=2, profile=profile),
        planner=PlannerConfig(name=name),
        data=DATA,
        **{"task": TaskConfig(name="plan", explain=True), **more},
    )


@pytest.mark.parametrize("name", [PlannerName.galaxy, PlannerName.auto])
def test_without_a_profile_it_says_how_to_get_one(name: PlannerName) -> None:
    with pytest.raises(UserError, match=r"Run edgempi profile task.save=profile.yaml, then add cluster.profile="):
        task.prepare(config(name, None))


def test_a_profile_of_other_weights_is_refused(profile: str) -> None:
    with pytest.raises(UserError, match="measured with fp32 weights"):
        task.prepare(config(PlannerName.auto, profile, weights=WeightsConfig(WeightDtype.bf16)))


def test_a_way_of_sharing_beside_it_is_refused(profile: str) -> None:
    tensor = ParallelConfig(name="tensor", modes=[Sharing.tensor])
    with pytest.raises(UserError, match="planner=galaxy: beside parallel=tensor"):
        task.prepare(config(PlannerName.galaxy, profile, parallel=tensor))


def test_galaxy_shares_by_hybrid(profile: str) -> None:
    result = task.prepare(config(PlannerName.galaxy, profile))
    assert [row["mode"] for row in result["plan"]] == ["hybrid"] * 2
    assert result["reasons"]["rejected"] == []
    assert result["reasons"]["total_s"] > 0


def test_auto_tells_what_it_took_and_what_it_left(profile: str) -> None:
    wire = WireConfig(allowed=[WireDtype.fp32, WireDtype.int8])
    result = task.prepare(config(PlannerName.auto, profile, wire=wire))
    assert result["reasons"]["rejected"]
    console = Console(file=io.StringIO(), width=160)
    task.report(result, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("Blocks", "attention", "exposed", "Rejected", "slower by", "Predicted: "):
        assert expected in said


def test_without_times_memory_is_explained_alone() -> None:
    result = task.prepare(config(PlannerName.even, None))
    console = Console(file=io.StringIO(), width=160)
    task.report(result, console)
    assert "Times need a profile" in console.file.getvalue()  # type: ignore[attr-defined]
