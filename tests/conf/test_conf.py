"""Every file of conf/ composes, validates, and describes a possible job."""

from __future__ import annotations

import pytest

from edgempi.config.check import check_config
from edgempi.config.load import compose, group_options

# What a choice needs beside itself, where it makes no job alone.
BESIDE = {
    "model=local": ["model.path=/a/folder"],
    "parallel=single": ["cluster=local1"],
    "parallel=pipeline_hybrid": ["cluster=local4"],
    "planner=manual": ["planner.heads=[3,1]"],
    "finetune_data=jsonl": ["finetune_data.path=/a/file.jsonl"],
    "finetune_data=table": ["finetune_data.path=/a/file.csv"],
}


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in group_options().items() for name in names])
def test_choice_composes(choice: str) -> None:
    check_config(compose([choice, *BESIDE.get(choice, [])]))
