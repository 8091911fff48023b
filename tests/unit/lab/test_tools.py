from __future__ import annotations

import os
import shutil

import pytest

from edgempi.errors import UserError
from edgempi.lab.tools import check_tools, run_tool


def test_without_root_it_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match=r"user id 1000; .* need root\. Start edgempi as root \(sudo\), or use local"):
        check_tools()


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "tc" else f"/bin/{tool}")
    with pytest.raises(UserError, match=r"no tc on PATH; .* Install iproute2"):
        check_tools()


def test_a_tool_that_fails_is_quoted() -> None:
    assert run_tool("echo", "fine") == "fine\n"
    with pytest.raises(UserError, match=r"lab: sh -c .*: Operation not permitted"):
        run_tool("sh", "-c", "echo first >&2; echo RTNETLINK answers: Operation not permitted >&2; exit 2")
