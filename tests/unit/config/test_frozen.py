from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from edgempi.config.cluster import ClusterConfig, DeviceConfig
from edgempi.config.frozen import freeze, thaw
from edgempi.config.schema import (
    Config,
    ParallelConfig,
    PlannerConfig,
    PlannerName,
    Sharing,
    WeightDtype,
    WireConfig,
)
from edgempi.errors import UserError


def _config() -> Config:
    return Config(
        cluster=ClusterConfig(
            devices={"a": DeviceConfig(host="x", speed=2.5, memory_budget_bytes=10), "b": DeviceConfig()}
        ),
        parallel=ParallelConfig(stages=[[0], [1]], modes=[Sharing.tensor, Sharing.hybrid], decode=None),
        planner=PlannerConfig(name=PlannerName.manual, heads=[3, 0], tokens=[0.5, 1.5]),
        wire=WireConfig(WeightDtype.bf16),
    )


def test_thaw_returns_what_was_frozen() -> None:
    payload = {"plan": {"stages": [1, 2]}, "tiny": 1e-5, "text": "it's: ß\n\u2028yes", "no": None, "on": True}
    assert thaw(freeze(_config(), payload)) == (_config(), payload)


def test_text_is_plain_yaml() -> None:
    document = yaml.safe_load(freeze(_config(), {}))
    assert list(document) == ["edgempi", "task", "config", "payload"]
    assert document["config"]["parallel"]["modes"] == ["tensor", "hybrid"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(edgempi="9.9.9"), "one version of edgempi on all devices"),
        (lambda d: d.pop("payload"), "keys ['config', 'edgempi', 'task']"),
        (lambda d: d["config"]["cluster"].update(ranks="two"), "config.cluster.ranks: 'two'"),
        (lambda d: d["config"]["cluster"].update(rank=2), "config.cluster:"),
        (lambda d: d["config"]["wire"].update(dtype="fp8"), "config.wire.dtype: 'fp8'"),
        (lambda d: d["config"].update(model=3), "config.model: 3"),
    ],
)
def test_a_job_of_another_making_is_refused(change, said) -> None:
    document = yaml.safe_load(freeze(_config(), {}))
    change(document)
    with pytest.raises(UserError) as caught:
        thaw(yaml.safe_dump(document))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "!!python/object/apply:os.getcwd []"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="frozen job"):
        thaw(text)


def test_a_rank_that_thaws_imports_no_hydra() -> None:
    script = (
        "import sys; import edgempi.worker; from edgempi.config.frozen import thaw; thaw(sys.stdin.read());"
        "print({'hydra', 'omegaconf', 'mpi4py.MPI'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=freeze(_config(), {}), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
