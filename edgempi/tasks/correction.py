"""`bench task.save=FILE`: the profile that the plans were made with, corrected by what the devices then took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgempi.cluster.known import known_profile
from edgempi.cluster.profile_text import profile_to_yaml
from edgempi.cluster.recalibrate import recalibrate
from edgempi.cluster.training_times import load_training
from edgempi.config.files import write_atomic
from edgempi.config.schema import Config
from edgempi.errors import UserError


def check_save(config: Config) -> None:
    """Refuse a `task.save` that cannot be written, or that has nothing to correct."""
    if config.task.save is None:
        return
    if config.cluster.profile is None:
        raise UserError(
            "task.save", value=config.task.save, rule="bench writes a corrected cluster.profile there",
            remedy="Measure one with edgempi profile, and name it in cluster.profile",
        )  # fmt: skip
    if not Path(config.task.save).expanduser().absolute().parent.is_dir():
        raise UserError(
            "task.save", value=config.task.save, rule="its folder is there", remedy="Name a file in such a folder"
        )


def save_corrected(config: Config, ways: Sequence[Mapping[str, Any]]) -> str | None:
    """Write the profile with each device as slow as it was over all ways together; on rank 0, where it was asked for.

    Times of training stay as they are: ways of sharing say nothing of them.

    Returns:
        The file; None where nothing was asked for, or no way was predicted.

    Args:
        config: names both files.
        ways: of the result, each with `predicted` and `measured`; those without either say nothing.
    """
    known = [way for way in ways if way["predicted"] is not None and way["measured"] is not None]
    if config.task.save is None or not known:
        return None
    profile = known_profile(config.cluster)
    predicted = [_sum(way["predicted"]["devices"][rank] for way in known) for rank in range(profile.size)]
    measured = [_sum(way["measured"]["ranks"][rank] for way in known) for rank in range(profile.size)]
    note = f"Corrected by {len(known)} ways of sharing {config.model.path}, {config.data.length} tokens."
    path = Path(config.task.save).expanduser()
    assert config.cluster.profile is not None, "check_save"
    training = load_training(config.cluster.profile)
    write_atomic(path, profile_to_yaml(recalibrate(profile, predicted, measured), note, training))
    return str(path)


def _sum(devices: Any) -> float:
    return float(sum(device["compute_s"] for device in devices))
