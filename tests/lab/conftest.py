"""One emulated LAN for all tests here, where this machine allows one; they are skipped, with the reason, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgempi.cli import main
from edgempi.config.load import compose
from edgempi.lab import state
from edgempi.lab.layout import describe
from edgempi.lab.session import bring_up, find_remains, tear_down
from lab.emulated import LAB, Edgempi, Said, why_not


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips where no lab can be built."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab(machine: None) -> Iterator[tuple[str, ...]]:
    """The overrides of a lab that is up for the whole session."""
    with state.exclusive("tests"):
        bring_up(describe(compose(list(LAB)).cluster), kept=True)
    yield LAB
    with state.exclusive("tests"):
        tear_down()
    assert find_remains() == []


@pytest.fixture
def edgempi_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Edgempi:
    """Runs `edgempi lab WORDS` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        capfd.readouterr()
        status = main(["lab", *words])
        return Said(status, *capfd.readouterr())

    return run
