from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.config.cluster import ClusterConfig
from edgempi.config.load import compose
from edgempi.errors import UserError
from edgempi.lab import network, session, state
from edgempi.lab.layout import describe
from edgempi.lab.session import Place, place_for
from edgempi.lab.state import LabState


def test_real_hosts_need_no_lab() -> None:
    with place_for(ClusterConfig(ranks=3), "infer") as place:
        assert place == Place()
        assert place.command(["mpirun", "x"]) == ["mpirun", "x"]
        ranks = place.ranks(ClusterConfig(ranks=3))
        assert (ranks.hosts, ranks.agent) == (["localhost"] * 3, None)
        assert place.out_of_memory() == []


def test_a_lab_that_is_kept_with_other_settings_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "check_tools", lambda: None)
    monkeypatch.setattr(state, "FOLDER", tmp_path)
    monkeypatch.setattr(state, "LOCK", tmp_path / "lock")
    kept = LabState(describe(compose(["cluster=lab_a", "cluster.lab.memory_limit=false"]).cluster), kept=True)
    monkeypatch.setattr(state, "read_state", lambda: kept)
    monkeypatch.setattr(network, "found_namespaces", lambda: ["edgempi-nano-m0", "edgempi-nano-m1"])
    wanted = compose(["cluster=lab_a"]).cluster
    with pytest.raises(UserError) as refused, place_for(wanted, "infer"):
        pass
    assert "nano-m0 (33.2 GFLOP/s, no limit)" in str(refused.value.value)
    assert "nano-m0 (33.2 GFLOP/s, 1.5 GB)" in refused.value.rule


def test_launchers_reach_devices_from_the_head_by_the_agent() -> None:
    cluster = compose(["cluster=lab_a"]).cluster
    place = Place(LabState(describe(cluster), kept=True))
    assert place.ranks(cluster).agent == str(state.AGENT)
    assert place.ranks(cluster).hosts == ["nano-m0", "nano-m1"]
    assert place.command(["mpirun", "a b"])[-3:] == ["edgempi.lab.agent", "head", "exec mpirun 'a b'"]
