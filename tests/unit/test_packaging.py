"""What is installed is what the repository holds."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_conf_and_kernels_are_inside_the_package() -> None:
    conf, kernels = files("edgempi.conf"), files("edgempi.kernels")
    assert conf.joinpath("config.yaml").is_file()
    assert conf.joinpath("cluster/local2.yaml").is_file()
    assert kernels.joinpath("__init__.py").is_file()


def test_every_dependency_is_pinned_within_its_tested_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    lines = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
