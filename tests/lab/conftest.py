"""One emulated LAN for all tests here, where this machine allows one; they are skipped, with the reason, elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgempi.lab.session import find_remains
from lab.emulated import LAB, edgempi, why_not


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips where no lab can be built."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The overrides of a lab that is up for the whole session."""
    folder = tmp_path_factory.mktemp("lab")
    up = edgempi(folder, "up", *LAB)
    assert up.returncode == 0, up.stderr
    yield LAB
    down = edgempi(folder, "down")
    assert down.returncode == 0, down.stderr
    assert find_remains() == []
