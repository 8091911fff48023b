"""The README's commands work as they stand there, and no link of the documents leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "kernels/README"))]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
LIMIT_S = 120

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_HERE = re.compile(r"<<'(\w+)'$")


def commands(text: str) -> Iterator[str]:
    """The commands of the ```bash blocks in order, continued lines and here-documents whole."""
    for language, block in _FENCE.findall(text):
        lines = iter(block.splitlines() if language == "bash" else [])
        for line in lines:
            command = [line]
            if here := _HERE.search(line):
                for inside in lines:  # the block goes on behind it
                    command.append(inside)
                    if inside == here[1]:
                        break
            while command[-1].endswith("\\"):
                command.append(next(lines))
            if line.strip() and not line.lstrip().startswith("#"):
                yield "\n".join(command)


COMMANDS = list(commands(README.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working folder for all: later commands read what earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[command.splitlines()[0] for command in COMMANDS])
def test_command(number: int, folder: Path) -> None:
    command = COMMANDS[number]
    if command.startswith("launch/test"):  # is running already
        check_script(ROOT / "launch" / "test")
        return
    if command.startswith("launch/"):
        if not Path(sys.prefix, ".edgempi-setup").exists():
            pytest.skip("launch/setup has not made this environment; here it would install one")
        command = f"{ROOT}/{command.partition('#')[0].strip()} {mpi_switch()}"
    assignments = [earlier for earlier in COMMANDS[:number] if re.match(r"[A-Z]+=\S+", earlier)]
    done = run("\n".join([*assignments, command]), folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", ["quickstart", "setup", "test", "mpirun_hostfile"])
def test_launch_scripts_parse(name: str) -> None:
    check_script(ROOT / "launch" / name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


def test_the_commands_are_found() -> None:
    text = "```bash\na 1  # why\n# a remark\nb <<'END'\n# kept\nEND\nc \\\n  d\n```\n```text\ne\n```\n"
    assert list(commands(text)) == ["a 1  # why", "b <<'END'\n# kept\nEND", "c \\\n  d"]
    assert COMMANDS[0].startswith("launch/quickstart")


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with this environment's programs first on PATH, and end what it started when time is up."""
    root_is_fine = {f"{mpi}_ALLOW_RUN_AS_ROOT{again}": "1" for mpi in ("OMPI", "PRTE") for again in ("", "_CONFIRM")}
    environment = {
        **os.environ,
        **root_is_fine,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "VIRTUAL_ENV": sys.prefix,
    }
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                member.kill()
            pytest.fail(f"took more than {LIMIT_S} s: {script}")
    return subprocess.CompletedProcess(script, process.returncode, out, err)


def check_script(path: Path) -> None:
    """It is there, may be executed, and is bash."""
    assert os.access(path, os.X_OK), path
    subprocess.run(["bash", "-n", path], check=True, timeout=10)


def mpi_switch() -> str:
    """What makes a launch script take the environment that runs this test."""
    ours, _, mpi = Path(sys.prefix).name.partition(".venv-")
    return f"--mpi {mpi}" if Path(sys.prefix).parent == ROOT and mpi and not ours else ""


def anchors(document: Path) -> set[str]:
    """The anchors that the headings of a document get."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
