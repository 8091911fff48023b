"""Memory, then disk, then computing again; and a full disk ends caching, not the job."""

from __future__ import annotations

import errno
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgempi.errors import UserError
from edgempi.finetune.cache import disk as disk_module
from edgempi.finetune.cache import files as files_module
from edgempi.finetune.cache.found import Budget, Tier
from edgempi.finetune.cache.store import ActivationCache

MEMORY, DISK, RECOMPUTE = Tier.MEMORY, Tier.DISK, Tier.RECOMPUTE


def _size(cache: ActivationCache, hidden: Any, count: int = 1) -> int:
    """Bytes of `count` samples of the length that multiples of five have."""
    return count * cache.codec.nbytes({name: len(x) for name, x in hidden(5).items()})


def test_memory_serves_the_first_ones_in_every_epoch(open_cache: Any, hidden: Any, same: Any) -> None:
    size = _size(open_cache(model="size"), hidden)
    cache = open_cache(budget=Budget(memory_bytes=3 * size + size // 2))
    samples = [5 * i for i in range(8)]
    for sample in samples:
        assert cache.put(sample, hidden(sample)) is DISK
    assert cache.memory_bytes == 3 * size
    for order in (samples, samples[::-1], samples[3:] + samples[:3]):
        tiers = {sample: cache.get(sample).tier for sample in order}
        assert [tiers[sample] for sample in samples] == [MEMORY] * 3 + [DISK] * 5
    assert (cache.counters.memory_hits, cache.counters.disk_hits, cache.counters.misses) == (9, 15, 0)
    assert cache.counters.read_bytes == 15 * size
    assert all(same(cache.get(sample).tensors(), hidden(sample)) for sample in samples)


def test_memory_is_filled_again_after_a_restart(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache() as cache:
        for sample in (0, 5, 10):
            cache.put(sample, hidden(sample))
        size = _size(cache, hidden)
    cache = open_cache(budget=Budget(memory_bytes=2 * size))
    tiers = [[cache.get(sample).tier for sample in (10, 0, 5)] for _ in range(2)]
    assert tiers == [[DISK] * 3, [MEMORY, MEMORY, DISK]]
    assert same(cache.get(10).tensors(), hidden(10))


def test_both_budgets_together_hold_what_both_allow(open_cache: Any, hidden: Any, same: Any) -> None:
    size = _size(open_cache(model="size"), hidden)
    cache = open_cache(budget=Budget(memory_bytes=3 * size, disk_bytes=4 * size + 5))
    samples = [5 * i for i in range(9)]
    assert [cache.put(sample, hidden(sample)) for sample in samples] == [DISK] * 4 + [MEMORY] * 3 + [RECOMPUTE] * 2
    assert cache.disk_bytes <= 4 * size + 5
    assert cache.memory_bytes == 3 * size
    assert [cache.get(sample).tier for sample in samples] == [DISK] * 4 + [MEMORY] * 3 + [RECOMPUTE] * 2
    assert all(same(cache.get(sample).tensors(), hidden(sample)) for sample in samples[:7])
    assert (cache.counters.stored, cache.counters.refused, cache.counters.recomputed) == (7, 2, 0)
    for sample in cache.missing(samples):
        cache.put(sample, hidden(sample))
    assert (cache.counters.refused, cache.counters.recomputed) == (4, 2)
    cache.close()
    assert open_cache().missing(samples) == samples[4:]


def test_memory_only(open_cache: Any, hidden: Any) -> None:
    cache = open_cache(budget=Budget(memory_bytes=1 << 20, disk_bytes=0))
    assert cache.put(1, hidden(1)) is MEMORY
    assert cache.put(1, hidden(1)) is MEMORY
    assert cache.delete([1]) == 1
    assert (cache.memory_bytes, cache.disk_bytes) == (0, 0)


def test_no_budget_at_all(open_cache: Any, hidden: Any) -> None:
    cache = open_cache(budget=Budget(0, 0))
    assert cache.put(1, hidden(1)) is RECOMPUTE
    assert cache.get(1).tier is RECOMPUTE


def test_room_comes_back_with_compaction(open_cache: Any, hidden: Any) -> None:
    size = _size(open_cache(model="size"), hidden)
    cache = open_cache(budget=Budget(0, disk_bytes=3 * size))
    assert [cache.put(sample, hidden(sample)) for sample in (0, 5, 10, 15)] == [DISK] * 3 + [RECOMPUTE]
    cache.delete([5])
    assert cache.put(15, hidden(15)) is RECOMPUTE
    cache.compact()
    assert cache.put(15, hidden(15)) is DISK


class SmallDisk:
    """`write_all` on a disk with so much room; what does not fit is written in part, as the system does."""

    def __init__(self, room: int, code: int) -> None:
        self.room, self.code = room, code
        self._write = files_module.write_all

    def __call__(self, descriptor: int, buffer: Any, offset: int) -> None:
        """Write what fits."""
        data = memoryview(buffer)
        fits = min(self.room, data.nbytes)
        self._write(descriptor, data[:fits], offset)
        self.room -= fits
        if fits < data.nbytes:
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_warns_once(
    open_cache: Any, hidden: Any, same: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cache = open_cache()
    size = _size(cache, hidden)
    small = SmallDisk(3 * size + 50, code)
    monkeypatch.setattr(disk_module, "write_all", small)
    samples = [5 * i for i in range(8)]
    with pytest.warns(RuntimeWarning, match="computed again") as caught:
        tiers = [cache.put(sample, hidden(sample)) for sample in samples]
    assert tiers == [DISK] * 3 + [RECOMPUTE] * 5
    assert len(caught) == 1
    # Nothing is left of the record that did not fit.
    assert cache.disk_bytes == 3 * size == sum(path.stat().st_size for path in cache.folder.glob("*.shard"))
    small.room = 10 * size
    cache.delete([0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.compact() > 0
        assert cache.put(35, hidden(35)) is DISK
    assert [cache.get(sample).tier for sample in samples] == [RECOMPUTE, DISK, DISK] + [RECOMPUTE] * 4 + [DISK]
    cache.close()
    assert same(open_cache().get(5).tensors(), hidden(5))


def test_a_disk_too_full_to_note_or_compact(open_cache: Any, hidden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache()
    for sample in (0, 5):
        cache.put(sample, hidden(sample))
    small = SmallDisk(0, errno.ENOSPC)
    monkeypatch.setattr(disk_module, "write_all", small)
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="no room to note"):
        cache.delete([0])
    assert cache.get(0)
    small.room = 40
    cache.delete([0])
    assert cache.compact() == 0
    assert cache.missing([0, 5]) == [0]
    cache.close()
    monkeypatch.undo()
    cache = open_cache()
    assert cache.missing([0, 5]) == [0]
    assert cache.compact() > 0


def test_other_errors_are_not_hidden(open_cache: Any, hidden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache()
    cache.put(0, hidden(0))
    before = cache.disk_bytes
    monkeypatch.setattr(disk_module, "write_all", SmallDisk(20, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        cache.put(5, hidden(5))
    assert cache.disk_bytes == before == sum(path.stat().st_size for path in cache.folder.glob("*.shard"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_no_room_for_a_folder(tiny_disk: Path, open_cache: Any) -> None:
    with pytest.raises(OSError, match="No space"):
        (tiny_disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match="No space left on device"):
        open_cache(tiny_disk)


@pytest.mark.filterwarnings("ignore:activation cache")
def test_a_real_full_disk(tiny_disk: Path, open_cache: Any, hidden: Any, same: Any) -> None:
    with pytest.warns(RuntimeWarning, match="No space left") as caught, open_cache(tiny_disk) as cache:
        tiers = [cache.put(sample, hidden(sample)) for sample in range(200)]
    assert len(caught) == 1
    kept = tiers.index(RECOMPUTE)
    assert kept > 20
    assert tiers == [DISK] * kept + [RECOMPUTE] * (200 - kept)
    with open_cache(tiny_disk) as cache:
        assert cache.missing(range(200)) == list(range(kept, 200))
        assert cache.recovery.dropped == 0
        assert all(same(cache.get(sample).tensors(), hidden(sample)) for sample in range(kept))
