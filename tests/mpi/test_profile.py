"""The profiler through the parent and its ranks, and its file given back to a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgempi.cluster.known import known_profile
from edgempi.config.schema import ClusterConfig

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
