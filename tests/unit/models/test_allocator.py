"""Huge pages for tensors, where the system has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
from edgempi.models.allocator import use_huge_pages
use_huge_pages()
import torch
x = torch.ones(2**24)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system gives programs no huge pages"
)
@pytest.mark.parametrize(("environment", "some"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_large_tensors_lie_on_huge_pages(environment: dict[str, str], some: bool) -> None:
    if not some and "[always]" in SETTING.read_text():
        pytest.skip("this system gives them to all")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={"PATH": "", **environment}
    )
    assert (int(done.stdout) > 0) == some
