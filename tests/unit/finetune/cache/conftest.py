"""A small key, hidden states for it, and caches in folders of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.finetune.cache.found import Budget
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.cache.store import ActivationCache

LAYERS = ("enc.0", "enc.1", "dec.0", "dec.1")
WIDTH = 16

Hidden = Callable[..., dict[str, Tensor]]
Open = Callable[..., ActivationCache]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waiting for the disk protects from, a loss of power, no test makes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make_key() -> Callable[..., CacheKey]:
    """A key with some fields changed."""

    def make(**changes: Any) -> CacheKey:
        fields = {"model": "m", "tokenizer": "t", "template": "x", "truncation": (128, 8)}
        return CacheKey(**fields | {"layers": LAYERS, "width": WIDTH, "dtype": "fp32"} | changes)

    return make


@pytest.fixture
def hidden() -> Hidden:
    """Hidden states of a sample; the number of tokens follows from its id."""

    def make(sample: int, layers: tuple[str, ...] = LAYERS, width: int = WIDTH) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(sample)
        every = {
            name: torch.randn(3 + sample % 5 if name.startswith("enc") else 2, width, generator=generator)
            for name in LAYERS
        }
        return {name: every[name] for name in layers}

    return make


@pytest.fixture
def open_cache(tmp_path: Path, make_key: Callable[..., CacheKey]) -> Iterator[Open]:
    """A function that opens a cache below the test's folder; closed when the test ends."""
    opened: list[ActivationCache] = []

    def make(
        root: Path = tmp_path, budget: Budget | None = None, shard_bytes: int = 1 << 20, **changes: Any
    ) -> ActivationCache:
        opened.append(ActivationCache(root, make_key(**changes), budget or Budget(), shard_bytes))
        return opened[-1]

    yield make
    for cache in opened:
        cache.close()


def same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether all layers agree to the bit."""
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.fixture(name="same")
def same_fixture() -> Callable[..., bool]:
    """`same`, for tests in other files."""
    return same
