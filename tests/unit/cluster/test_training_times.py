"""Training times in a profile file: there and back, and what is wrong with an edited one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgempi.cluster.profile import ClusterProfile, Device, ElementTime, Link
from edgempi.cluster.profile_text import load_profile, profile_to_yaml
from edgempi.cluster.training_times import (
    LayerTime,
    Purpose,
    RowTime,
    TrainingProfile,
    TrainingTimes,
    find_training,
    load_training,
    training_from_list,
    training_to_list,
    with_training,
)
from edgempi.errors import UserError

PURPOSE = Purpose(
    "t5; enc 64 wide", "parallel_adapter", {"reduction": 8, "down_rank": None, "merge": True}, 1, 128, "fp32", "adamw"
)
LAYER = LayerTime(RowTime(1e-4, 2e-3), RowTime(0.0, 5e-4))
TIMES = TrainingTimes({"train": {"enc.only": LAYER}, "cached": {"enc.only": LAYER}}, ElementTime(1e-6, 1e-9))
PROFILE = TrainingProfile(PURPOSE, (TIMES, replace(TIMES, update=ElementTime(0.0, 2e-9))))
LAN = ClusterProfile((Device("a", "h"), Device("b", "h")), (Link(0, 1, 1e-4, 1e9), Link(1, 0, 1e-4, 1e9)), "fp32")


def test_there_and_back() -> None:
    other = replace(PROFILE, purpose=replace(PURPOSE, technique="lora", sizes={"rank": 32}))
    data = yaml.safe_load(profile_to_yaml(LAN, "measured", [PROFILE, other]))
    assert training_from_list(data["training"]) == (PROFILE, other)


def test_it_stands_behind_devices_and_links(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(LAN, "measured", [PROFILE]))
    assert load_training(str(path)) == (PROFILE,)
    assert load_profile(str(path)) == LAN
    path.write_text(profile_to_yaml(LAN))
    assert load_training(str(path)) == ()


def test_lines_over_rows() -> None:
    assert LAYER.forward.seconds(3) == pytest.approx(1e-4 + 6e-3)
    assert LAYER.forward.seconds(0) == 0


def test_times_are_found_by_what_they_are_for() -> None:
    near = replace(PURPOSE, tokens=2)
    far = replace(PURPOSE, technique="lora", sizes={"rank": 4}, tokens=2)
    assert find_training([replace(PROFILE, purpose=near), PROFILE], PURPOSE) is PROFILE
    with pytest.raises(UserError, match="training times: measured for tokens 1; times are for tokens 2"):
        find_training([PROFILE, replace(PROFILE, purpose=far)], near)
    with pytest.raises(UserError, match="training times: none in the profile; times are for model t5"):
        find_training([], PURPOSE)
    with pytest.raises(UserError, match=r"Run edgempi profile task.training=true with this run's other overrides"):
        find_training([], PURPOSE)


def test_new_times_take_the_place_of_old_ones_for_the_same() -> None:
    other = replace(PROFILE, purpose=replace(PURPOSE, tokens=2))
    newer = replace(PROFILE, devices=PROFILE.devices[::-1])
    assert with_training([PROFILE, other], newer) == (other, newer)
    assert with_training([], PROFILE) == (PROFILE,)


def test_every_device_has_times(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(profile_to_yaml(LAN, training=[PROFILE, replace(PROFILE, devices=PROFILE.devices[:1])]))
    with pytest.raises(UserError, match=r"training\[1\].devices: 1; one for each of the 2 devices"):
        load_training(str(path))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d["devices"][1]["layers"]["train"]["enc.only"]["forward"].update(row_s=-1), r"row_s: -1; a finite"),
        (lambda d: d["devices"][0]["layers"]["train"]["enc.only"].pop("backward"), r"train\.enc\.only: has forward"),
        (lambda d: d["devices"][0]["layers"].pop("train"), r"layers: cached; it has train"),
        (lambda d: d["devices"][0]["layers"].update(warm={}), r"layers: train, cached, warm; it has train"),
        (lambda d: d["purpose"].pop("tokens"), r"training\[0\]\.purpose: has model"),
        (lambda d: d["purpose"].update(technique=3), r"purpose\.technique: 3; a name"),
        (lambda d: d["purpose"]["sizes"].update(reduction="much"), r"sizes\.reduction: much"),
        (lambda d: d.update(devices={}), r"training\[0\]\.devices: dict; a list"),
        (lambda d: d["devices"][0]["update"].update(call_s="fast"), r"update\.call_s: fast"),
    ],
)
def test_what_is_wrong_is_named(edit: Callable[[dict[str, Any]], None], said: str) -> None:
    data = training_to_list([PROFILE])
    edit(data[0])
    with pytest.raises(UserError, match=said):
        training_from_list(data)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_training(str(tmp_path / "none.yaml"))
    path = tmp_path / "odd.yaml"
    path.write_text("training: [{]")
    with pytest.raises(UserError, match=r"odd\.yaml: not YAML"):
        load_training(str(path))
    path.write_text("training: {}")
    with pytest.raises(UserError, match=r"odd.yaml: profile file training: dict; a list"):
        load_training(str(path))


def test_plain_types() -> None:
    assert training_to_list([PROFILE])[0]["devices"][0]["update"] == {"call_s": 1e-6, "s_per_element": 1e-9}
