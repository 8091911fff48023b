"""Bytes that go through a connection to oneself arrive."""

from __future__ import annotations

import pytest
import torch

from edgempi.profiling.transport import CHUNK, Loop


@pytest.mark.parametrize("elements", [1, CHUNK // 4, CHUNK // 4 + 1, CHUNK])
def test_every_byte_arrives(elements: int) -> None:
    sent = torch.randn(1, elements)
    into = torch.zeros_like(sent)
    with Loop() as loop:
        loop.move(sent, into)
        assert torch.equal(into, sent)
        loop.move(2 * sent, into)
    assert torch.equal(into, 2 * sent)
