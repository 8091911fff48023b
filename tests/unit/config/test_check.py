from __future__ import annotations

from dataclasses import replace

import pytest

from edgempi.config.check import check_config
from edgempi.config.cluster import ClusterConfig, DeviceConfig
from edgempi.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PlannerConfig,
    PlannerName,
    Sharing,
)
from edgempi.errors import UserError

PROMPTS = DataConfig(prompts=["hello"])
SOUND = Config(cluster=ClusterConfig(ranks=3), data=PROMPTS)
MANUAL, PROPORTIONAL = PlannerName.manual, PlannerName.proportional


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cluster": ClusterConfig(ranks=1), "parallel": ParallelConfig(modes=[Sharing.single])},
        {"parallel": ParallelConfig(pipeline=True, modes=[Sharing.single])},
        {"parallel": ParallelConfig(stages=[[2], [0, 1]], modes=[Sharing.single, Sharing.tensor])},
        {"planner": PlannerConfig(PROPORTIONAL, speeds=[2, 1, 0])},
        {"planner": PlannerConfig(MANUAL, heads=[0, 4, 4], tokens=[0.5, 0.5, 0])},
        {"planner": PlannerConfig(layers=[12])},
        {"planner": PlannerConfig(MANUAL, path="program.yaml"), "parallel": ParallelConfig(modes=[])},
        {"cluster": ClusterConfig(devices={n: DeviceConfig(host=h) for n, h in zip("abc", "xxy", strict=True)})},
    ],
)
def test_possible_combinations_pass(changes: dict) -> None:
    check_config(replace(SOUND, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ModelConfig(path="")}, "model.path: empty"),
        ({"data": DataConfig()}, "data: no prompts and no file"),
        ({"parallel": ParallelConfig(stages=[[0, 1], [2, 3]])}, "parallel.stages: 3; the cluster has devices 0 to 2"),
        ({"parallel": ParallelConfig(stages=[[0, 1], [1, 2]])}, "parallel.stages: 1; a device works in one stage"),
        ({"parallel": ParallelConfig(stages=[[0], [1]])}, "parallel.stages: 2; every device"),
        ({"parallel": ParallelConfig(stages=[[0, 1, 2], []])}, "parallel.stages: an empty stage"),
        ({"parallel": ParallelConfig(stages=[])}, "parallel.stages: an empty stage"),
        ({"parallel": ParallelConfig(modes=[])}, "parallel.modes: 0 modes"),
        ({"parallel": ParallelConfig(modes=[Sharing.data] * 2)}, "parallel.modes: 2 modes; one for all"),
        ({"parallel": ParallelConfig(modes=[Sharing.single])}, "single, for the 3 devices of stage 0"),
        ({"planner": PlannerConfig(PlannerName.even, speeds=[1, 1, 1])}, "only planner=proportional reads it"),
        ({"planner": PlannerConfig(PROPORTIONAL, speeds=[1, 1])}, "planner.speeds: [1,1]; 3 numbers"),
        ({"planner": PlannerConfig(PROPORTIONAL, speeds=[0, 0, 0])}, "planner.speeds: [0,0,0]; 3 numbers"),
        ({"planner": PlannerConfig(heads=[1, 1, 1])}, "only planner=manual reads it"),
        ({"planner": PlannerConfig(path="program.yaml")}, "only planner=manual reads it"),
        ({"planner": PlannerConfig(MANUAL)}, "planner: manual, without shares"),
        ({"planner": PlannerConfig(MANUAL, heads=[1, -1, 1])}, "planner.heads: [1,-1,1]; 3 numbers"),
        ({"planner": PlannerConfig(MANUAL, path="p", heads=[1, 1, 1])}, "planner.path: beside planner.heads"),
        ({"planner": PlannerConfig(MANUAL, path="p", layers=[1])}, "planner.path: beside planner.layers"),
        ({"planner": PlannerConfig(MANUAL, layers=[6, 6])}, "planner.layers: [6,6]; 1 counts"),
        (
            {"cluster": ClusterConfig(devices={n: DeviceConfig(host=h) for n, h in zip("abc", "xyx", strict=True)})},
            "x stands in 2 places",
        ),
    ],
)
def test_impossible_combinations_are_one_line_with_a_remedy(changes: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(replace(SOUND, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
