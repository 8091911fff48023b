"""The frozen job: what the parent decided, as YAML text that rank 0 reads and broadcasts.

Reading it needs neither Hydra nor OmegaConf, so a rank imports neither.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

import yaml

import edgempi
from edgempi.config.schema import Config
from edgempi.errors import UserError

_KEYS = {"edgempi", "task", "config", "payload"}


def freeze(config: Config, payload: dict[str, Any]) -> str:
    """The job as text.

    Args:
        config: validated.
        payload: what the task prepared, in JSON types.
    """
    document = {
        "edgempi": edgempi.__version__,
        "task": config.task.name,
        "config": _plain(dataclasses.asdict(config)),
        "payload": payload,
    }
    return yaml.dump(document, Dumper=_FastDumper, sort_keys=False, allow_unicode=True)


def thaw(text: str) -> tuple[Config, dict[str, Any]]:
    """The configuration and payload that `freeze` wrote, checked against this version of edgempi."""
    try:
        document = yaml.load(text, Loader=_FastLoader)
    except yaml.YAMLError as error:
        raise _damaged(str(error).splitlines()[0]) from error
    if not isinstance(document, dict) or set(document) != _KEYS:
        raise _damaged(f"keys {sorted(map(str, document))}" if isinstance(document, dict) else type(document).__name__)
    if document["edgempi"] != edgempi.__version__:
        raise UserError(
            "frozen job", value=f"written by edgempi {document['edgempi']}",
            rule=f"this is edgempi {edgempi.__version__}", remedy="Install one version of edgempi on all devices",
        )  # fmt: skip
    return _build(Config, document["config"], "config"), document["payload"]


# libyaml where PyYAML was built with it: ten times as fast, the same text.
_FastDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type that the schema names; the inverse of `_plain`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return _build(kind, value, where)
    try:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
        if origin is list:
            return [_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        if origin is dict:
            return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
        if issubclass(kind, Enum):
            return kind(value)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(f"{where}: {value!r}") from error
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _damaged(f"{where}: {value!r}")
    return value


def _damaged(found: str) -> UserError:
    return UserError(
        "frozen job", value=found, rule="it is a job.yaml as this version of edgempi writes it",
        remedy="Start the task again instead of editing the file",
    )  # fmt: skip
