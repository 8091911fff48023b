from __future__ import annotations

import pytest

from edgempi.lab.agent import entering, parse
from edgempi.lab.layout import HEAD


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pi", "prted", "--x", "1"], ("pi", "prted --x 1")),
        (["-x", "-i", "key", "-o", "StrictHostKeyChecking=no", "-q", "me@pi", "a b", "c"], ("pi", "a b c")),
        (["-oBatchMode=yes", "pi", "true"], ("pi", "true")),
        (["pi", "ls -l"], ("pi", "ls -l")),
    ],
)
def test_it_reads_what_launchers_tell_ssh(words: list[str], found: tuple[str, str]) -> None:
    assert parse(words) == found


def test_it_needs_a_host_and_a_command() -> None:
    with pytest.raises(SystemExit, match="usage"):
        parse(["-q", "pi"])


def test_only_devices_get_interfaces_of_their_own() -> None:
    assert any("sysfs" in word for word in entering("pi", "true"))
    assert not any("sysfs" in word for word in entering(HEAD, "true"))
    assert entering("pi", "echo $HOME")[-1] == "echo $HOME"
