from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.config.cluster import DeviceConfig
from edgempi.config.load import compose, group_options
from edgempi.config.schema import PlannerName, Sharing, WeightDtype
from edgempi.errors import UserError


def test_a_line_as_a_user_writes_it() -> None:
    line = "cluster=local4 parallel=tensor planner=proportional planner.speeds=[2,1,1,1] wire=bf16 model.path=/a/folder"
    config = compose([*line.split(), 'data.prompts=["hello"]'])
    assert (config.cluster.ranks, config.parallel.modes) == (4, [Sharing.tensor])
    assert (config.planner.name, config.planner.speeds) == (PlannerName.proportional, [2.0, 1.0, 1.0, 1.0])
    assert (config.model.path, config.data.prompts) == ("/a/folder", ["hello"])
    assert (config.wire.dtype, config.weights.dtype) == (WeightDtype.bf16, WeightDtype.fp32)


def test_devices_on_the_command_line() -> None:
    config = compose(["+cluster.devices={a:{host:x,speed:2},b:{}}"])
    assert config.cluster.named_devices() == {"a": DeviceConfig("x", 2.0), "b": DeviceConfig()}


def test_groups_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "home.yaml").write_text("ranks: 7\n")
    assert compose(["cluster=home"], config_dir=str(tmp_path)).cluster.ranks == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.pth=x", "model.pth; there is no such key. Perhaps you meant model.path"),
        ("+model.pth=x", "model.pth; there is no such key. Perhaps you meant model.path"),
        ("clustr=local2", "clustr; there is no such key. Perhaps you meant cluster"),
        ("+nonsense=1", "nonsense; there is no such key. The groups are cache, cluster, data"),
        ("cluster=local9", "cluster choice: local9; it is one of lab_a, lab_b"),
        ("parallel=hybird", "Perhaps you meant hybrid"),
        ("cluster.ranks=two", "cluster.ranks: Value 'two' of type 'str' could not be converted to Integer"),
        ("cluster.ranks=null", "it is of type int"),
        ("cluster.ranks=0", "cluster.ranks: 0; at least one rank"),
        ("cluster.ranks=1,2", "add --multirun"),
        ("weights.dtype=fp8", "weights.dtype: fp8; it is one of fp32, bf16"),
        (
            "parallel.modes=[tensr]",
            "parallel.modes[0]: tensr; it is one of single, data, tensor, sequence, hybrid, heads. Perhaps",
        ),
        ("planner.speeds=3", "planner.speeds: Invalid value assigned"),
        ("cluster.devices.a.host=x", "Describe all devices at once"),
        ("+cluster.devices.a.host=x", "Describe all devices at once"),
        ("model.path=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("cluster.ranks=[1", "override: cluster.ranks=[1; an override is key=value"),
        ("word", "override: word; an override is key=value"),
        ("model.path=a=b", "Quote a value"),
    ],
)
def test_errors_are_one_line_with_a_remedy(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_group_options_are_the_files_of_conf() -> None:
    options = group_options()
    assert options["weights"] == ["bf16", "fp32"]
    inference = {"cluster", "data", "experiment", "model", "parallel", "planner", "task", "weights", "wire"}
    training = {"cache", "evaluation", "finetune_data", "optimizer", "system", "technique"}
    assert set(options) == inference | training
