"""Values of a file that a person may have edited: what is wrong with them, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import yaml

from edgempi.errors import UserError


@dataclass(frozen=True)
class Entries:
    """Checks the values of one kind of file.

    Args:
        remedy: what helps where a value is wrong.
    """

    remedy: str

    def number(self, value: object, where: str) -> float:
        """A finite number from zero."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
            raise self.wrong(where, value, "a finite number from zero")
        return value

    def entry(self, data: object, where: str, names: set[str] | None) -> Mapping[str, Any]:
        """Named values: exactly those of `names`, where it is given."""
        if not isinstance(data, Mapping):
            raise self.wrong(where, type(data).__name__, "named values")
        if names is not None and set(data) != names:
            raise self.wrong(where, f"has {', '.join(map(str, data))}", f"it has {', '.join(sorted(names))}")
        return data

    def wrong(self, where: str, value: object, rule: str) -> UserError:
        """The error that names a place in the file."""
        return UserError(f"profile file {where}", value=value, rule=rule, remedy=self.remedy)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Name the file of a profile in every error of reading it."""
    try:
        yield
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        otherwise = "not YAML" if isinstance(error, yaml.YAMLError) else "not a text file"
        said = error.strerror if isinstance(error, OSError) else otherwise
        raise UserError(
            "cluster.profile", value=f"{path}: {said}", rule="it is a file that edgempi profile wrote",
            remedy="Write one with edgempi profile task.save=profile.yaml",
        ) from error  # fmt: skip
    except UserError as error:
        raise UserError(
            f"cluster.profile {path}: {error.what}", value=error.value, rule=error.rule, remedy=error.remedy
        ) from error
