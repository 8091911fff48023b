from __future__ import annotations

from pathlib import Path

import pytest

from edgempi.config.files import write_atomic


def test_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.yaml"
    target.write_text("old")
    write_atomic(target, "ß\n")
    assert target.read_text(encoding="utf-8") == "ß\n"
    assert list(tmp_path.iterdir()) == [target]


def test_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.yaml"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(target, "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
