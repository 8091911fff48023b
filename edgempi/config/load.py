"""From YAML groups and overrides to a `Config`: composing, validating, and saying in one line what is wrong.

With `cli.py` the only file that knows Hydra and OmegaConf; everything else sees the dataclasses of `schema.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from edgempi.config.describe import describe_keys, did_you_mean
from edgempi.config.schema import Config
from edgempi.errors import UserError

CONFIG_MODULE, CONFIG_NAME = "edgempi.conf", "config"
CONFIG_ERRORS = (HydraException, OmegaConfBaseException)

_DEVICES = "Describe all devices at once: '+cluster.devices={name:{host:address,speed:1}}', or in a YAML file"

_WAYS = "Name all ways at once: '+bench.ways={name:{parallel:tensor}}', or in a YAML file"


def register_schema() -> None:
    """Make the schema known to Hydra as `base_config`, the first entry of `conf/config.yaml`."""
    ConfigStore.instance().store(name="base_config", node=Config)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Config:
    """Compose and validate without Hydra's application: no folder is made. For rank 0 when a launcher started us.

    Args:
        overrides: as on the command line, `cluster=local4` or `data.length=64`.
        config_dir: a folder of the user's with groups of its own, searched beside ours.
    """
    folder = str(Path(config_dir or ".").resolve()).replace("\\", "\\\\").replace("'", "\\'")
    search = [f"hydra.searchpath=['file://{folder}']"] if config_dir else []
    register_schema()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return to_config(hydra_compose(CONFIG_NAME, [*search, *overrides]))
    except CONFIG_ERRORS as error:
        raise explain(error) from error


def to_config(composed: DictConfig) -> Config:
    """The composed mapping as validated dataclasses, interpolations resolved; raises `UserError`."""
    try:
        # Hydra lets `+key=value` add keys that the schema lacks; merging into a fresh schema does not.
        values = OmegaConf.to_container(composed, resolve=True)
        strict = OmegaConf.merge(OmegaConf.structured(Config), values)
        return cast(Config, OmegaConf.to_object(strict))
    except OmegaConfBaseException as error:
        raise explain(error) from error


def group_options() -> dict[str, list[str]]:
    """The configuration groups that edgempi ships, and the choices in each."""
    options: dict[str, list[str]] = {}
    for folder in sorted(files(CONFIG_MODULE).iterdir(), key=lambda entry: entry.name):
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        choices = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]
        options |= {folder.name: choices} if choices else {}
    return options


def explain(error: Exception) -> UserError:
    """Hydra's or OmegaConf's error as one line with a remedy."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(str(cause.full_key))
    if isinstance(cause, ValidationError):
        return _wrong_value(str(cause.full_key), _first_line(cause))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = list(error.options or ())
        return UserError(
            f"{group} choice", value=choice, rule=f"it is one of {', '.join(options)}",
            remedy=did_you_mean(choice, options) or "Take one of them, or add a file of yours with --config-dir FOLDER",
        )  # fmt: skip
    if isinstance(error, OverrideParseException):
        return UserError(
            "override", value=str(error.override), rule="an override is key=value",
            remedy="Quote a value with spaces, commas, quotes or equals signs, for the shell and for edgempi: "
            "'key=\"value\"'",
        )  # fmt: skip
    if "Ambiguous value" in str(error):
        return UserError(
            "override", value=_first_line(error).rpartition(" ")[2], rule="one run takes one value",
            remedy="Write a list as [a,b], or add --multirun to run once for each",
        )  # fmt: skip
    return UserError(
        "configuration", value=_first_line(cause), rule="edgempi cannot read it", remedy="See edgempi infer --help"
    )


def _unknown_key(key: str) -> UserError:
    known = [entry.name for entry in describe_keys()]
    groups = list(group_options())
    if key.startswith("cluster.devices."):
        remedy = _DEVICES
    elif key.startswith("bench.ways."):
        remedy = _WAYS
    elif "." in key:
        remedy = did_you_mean(key, known) or f"See edgempi --help for the keys of {key.partition('.')[0]}"
    else:
        remedy = did_you_mean(key, groups) or f"The groups are {', '.join(groups)}"
    return UserError("configuration key", value=key, rule="there is no such key", remedy=remedy)


def _wrong_value(key: str, complaint: str) -> UserError:
    if "DeviceConfig" in complaint:
        return UserError("cluster.devices", value=complaint, rule="it maps names to devices", remedy=_DEVICES)
    value, expected, choices = complaint.partition(", expected one of ")
    if expected:
        value, choices = value.removeprefix("Invalid value ").strip("'"), choices.strip("[]")
        remedy = did_you_mean(value, choices.split(", ")) or "Take one of them"
        return UserError(key, value=value, rule=f"it is one of {choices}", remedy=remedy)
    types = {entry.name: entry.type for entry in describe_keys()}
    rule = f"it is of type {types.get(key.partition('[')[0], 'that the schema names')}"
    return UserError(key, value=complaint, rule=rule, remedy="Correct the value; edgempi infer --help lists all keys")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip()
