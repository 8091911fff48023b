"""Imports point one way, and heavy packages have one door each."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "edgempi").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

ORDER = (
    ("__main__",),
    ("cli",),
    ("worker",),
    ("usage",),
    ("report",),
    ("tasks",),
    ("serve",),
    ("finetune",),
    ("inference", "profiling", "lab"),
    ("parallel",),
    ("models",),
    ("ops", "comm"),
    ("kernels",),
    ("plan",),
    ("cluster",),
    ("config",),
    ("errors",),
)
"""A room imports from itself and from the rows below its own."""
ROW = {room: row for row, rooms in enumerate(ORDER) for room in rooms}
APART = {"__init__", "assets"}
"""The version, and what the project ships: imported by name or read as data, and importing no room."""

DOORS = {
    "mpi4py": ("edgempi/comm/",),
    "hydra": ("edgempi/cli.py", "edgempi/config/load.py"),
    "omegaconf": ("edgempi/cli.py", "edgempi/config/load.py"),
    "transformers": (
        "edgempi/models/source.py",
        "edgempi/models/families/",
        "edgempi/tasks/verify.py",
        "edgempi/assets/household/evaluate.py",
        "edgempi/assets/household/train.py",
        "edgempi/assets/household/vocabulary.py",
    ),
    "edgempi.kernels": ("edgempi/ops/", "kernels/"),
    "pickle": (),
}


def _imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` may mean `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "kernels" else parts[1].removesuffix(".py")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    room = _room(path)
    for module in _imported(path):
        package, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if package != "edgempi" or other in (room, "", "__version__"):
            continue
        assert room not in APART, f"{_name(path)} imports {module}, and stands apart"
        assert other in ROW, f"{_name(path)} imports {module}: {other} has no place in ORDER"
        assert ROW[room] < ROW[other], f"{_name(path)} imports {module}, which is not below it"


@pytest.mark.parametrize("package", DOORS)
def test_one_door(package: str) -> None:
    users = [_name(path) for path in FILES if any(f"{name}.".startswith(f"{package}.") for name in _imported(path))]
    strangers = [user for user in users if not user.startswith(DOORS[package])]
    assert not strangers
    assert bool(users) == bool(DOORS[package])


def test_plans_are_made_without_mpi_or_torch() -> None:
    files = (path for room in ("plan", "cluster") for path in (ROOT / "edgempi" / room).rglob("*.py"))
    rooms = [_name(path).removesuffix(".py").replace("/", ".") for path in files if path.stem != "__init__"]
    assert "edgempi.plan.training.pac" in rooms
    program = f"""
import importlib, sys
for name in {rooms}:
    importlib.import_module(name)
print([name for name in ("torch", "mpi4py", "transformers", "hydra") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
