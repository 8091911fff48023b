"""Reading ahead: in order, bounded, closed at once, with errors where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edgempi.finetune.cache.found import Budget, Tier
from edgempi.finetune.cache.prefetch import Prefetch


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "edgempi-prefetch"]


@pytest.fixture
def cache(open_cache: Any, hidden: Any) -> Any:
    """Twenty samples, of which the first four stay in memory."""
    size = open_cache(model="size").codec.nbytes({name: 8 if name[0] == "e" else 2 for name in hidden(0)})
    cache = open_cache(budget=Budget(memory_bytes=4 * size))
    for sample in range(20):
        cache.put(sample, hidden(sample))
    return cache


def test_gives_the_order_asked_for(cache: Any, hidden: Any, same: Any) -> None:
    order = [7, 3, 99, 3, *range(20)]
    with Prefetch(cache, order, ahead=3) as ahead:
        for sample, found in zip(order, ahead, strict=True):
            assert found.sample == sample
            assert same(found.tensors(), {} if sample == 99 else hidden(sample))
        assert next(ahead, None) is None
    assert cache.counters.misses == 1
    assert cache.counters.memory_hits >= 4
    assert not _threads()


def test_takes_batches(cache: Any) -> None:
    with Prefetch(cache, range(7), ahead=2, layers=["dec.0"]) as ahead:
        batches = [ahead.take(3) for _ in range(4)]
    assert [[found.sample for found in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6], []]
    assert batches[0][0].tensors().keys() == {"dec.0"}
    assert all(found.tier in (Tier.MEMORY, Tier.DISK) for batch in batches for found in batch)


def test_reads_no_further_than_it_may(cache: Any) -> None:
    asked: list[int] = []
    far = threading.Event()

    def order() -> Iterator[int]:
        for sample in range(20):
            asked.append(sample)
            if sample == 3:
                far.set()
            yield sample

    with Prefetch(cache, order(), ahead=3) as ahead:
        assert far.wait(20)
        # Three wait, and the fourth is known but not read.
        reads = cache.counters.memory_hits + cache.counters.disk_hits
        assert reads == 3
        assert len(ahead.take(20)) == 20
    assert asked == list(range(20))


def test_closes_while_it_waits(cache: Any) -> None:
    ahead = Prefetch(cache, iter(range(20)), ahead=2)
    assert next(ahead).sample == 0
    ahead.close()
    ahead.close()
    assert not _threads()
    assert next(ahead, None) is None


def test_errors_come_where_they_belong(cache: Any) -> None:
    def order() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("no order")

    with Prefetch(cache, order(), ahead=8) as ahead:
        assert [next(ahead).sample, next(ahead).sample] == [1, 2]
        with pytest.raises(OSError, match="no order"):
            next(ahead)
        assert next(ahead, None) is None
    with Prefetch(cache, [1], ahead=1, layers=["enc.9"]) as ahead, pytest.raises(KeyError):
        next(ahead)
    with pytest.raises(ValueError, match="at least one"):
        Prefetch(cache, [1], ahead=0)
    assert not _threads()


def test_puts_go_on_meanwhile(cache: Any, hidden: Any, same: Any) -> None:
    with Prefetch(cache, list(range(20)) * 3, ahead=4) as ahead:
        for step, found in enumerate(ahead):
            assert same(found.tensors(), hidden(found.sample))
            cache.put(100 + step, hidden(100 + step))
            if step == 30:
                cache.delete([107, 108], compact=True)
    assert cache.missing(range(100, 160)) == [107, 108]
    assert cache.verify() == []
