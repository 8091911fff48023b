"""The key-value cache gives back what was put in, in order."""

from __future__ import annotations

import torch

from edgempi.models.kv_cache import KVCache, LayerCache


def test_appends_follow_one_another() -> None:
    cache = LayerCache(capacity=6)
    parts = [torch.randn(2, 3, length, 4) for length in (3, 1, 2)]
    for i, part in enumerate(parts):
        keys, values = cache.append(part, -part)
        expected = torch.cat(parts[: i + 1], dim=2)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
    assert cache.length == 6


def test_its_buffers_are_made_once() -> None:
    cache = LayerCache(capacity=4)
    first, _ = cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    second, _ = cache.append(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert first.data_ptr() == second.data_ptr()


def test_a_device_without_heads_keeps_nothing() -> None:
    keys, values = LayerCache(capacity=4).append(torch.zeros(2, 0, 3, 4), torch.zeros(2, 0, 3, 4))
    assert keys.shape == values.shape == (2, 0, 3, 4)


def test_layers_have_caches_of_their_own() -> None:
    cache = KVCache(capacity=4)
    assert cache.layer("dec.0") is cache.layer("dec.0")
    assert cache.layer("dec.0") is not cache.layer("dec.1")
