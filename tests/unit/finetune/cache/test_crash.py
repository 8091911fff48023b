"""A cache cut at any byte: what is whole is kept, the rest is dropped, counted, and can be put again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import pytest

from edgempi.finetune.cache import disk as disk_module
from edgempi.finetune.cache import shard as shard_module
from edgempi.finetune.cache.index import INDEX_FILE, Ref, save_index
from edgempi.finetune.cache.record import FIXED_BYTES, ROW
from edgempi.finetune.cache.shard import shard_path
from edgempi.finetune.cache.store import ActivationCache

SAMPLES = range(6)
HEADER = FIXED_BYTES + 4 * ROW.size


class Killed(BaseException):
    """In the place of a signal."""


def _die(cache: ActivationCache) -> None:
    """Leave a cache as the kernel would leave it: no index, no lock."""
    cache._closed = True
    cache._disk.close()
    cache._lock.release()


@pytest.fixture
def filled(open_cache: Any, hidden: Any, tmp_path: Path) -> Path:
    """A closed cache of six samples in one shard."""
    with open_cache(tmp_path / "filled") as cache:
        for sample in SAMPLES:
            cache.put(sample, hidden(sample))
    return cache.folder


@pytest.fixture
def ends(open_cache: Any, filled: Path) -> list[int]:
    """Where each record ends in the shard."""
    with open_cache(filled.parent) as cache:
        return list(accumulate(cache.record_bytes([sample]) for sample in SAMPLES))


def _cuts(ends: list[int]) -> Iterator[int]:
    """Around each field and border of two records, and here and there in the bodies."""
    for start in (0, ends[4]):
        yield from (start + at for at in (0, 1, 3, 4, 5, 8, 16, 24, 32, 36, FIXED_BYTES - 1, FIXED_BYTES))
        yield from (start + at for at in (HEADER - 1, HEADER, HEADER + 1, HEADER + 100))
    yield from (end + step for end in ends for step in (-1, 0, 1) if end + step <= ends[-1])


@pytest.mark.parametrize("index", ["covers all", "covers two", "none", "torn"])
def test_a_shard_cut_short(
    filled: Path, ends: list[int], open_cache: Any, hidden: Any, same: Any, tmp_path: Path, index: str
) -> None:
    if index == "covers two":
        with open_cache(filled.parent) as cache:
            cache.delete(SAMPLES, compact=True)
            for sample in SAMPLES:
                cache.put(sample, hidden(sample))
                if sample == 1:
                    cache.flush()
            saved = (cache.folder / INDEX_FILE).read_bytes()
        (filled / INDEX_FILE).write_bytes(saved)
    elif index == "none":
        (filled / INDEX_FILE).unlink()
    elif index == "torn":
        (filled / INDEX_FILE).write_bytes((filled / INDEX_FILE).read_bytes()[:-5])
    for cut in sorted(set(_cuts(ends))):
        root = tmp_path / f"{cut}"
        shutil.copytree(filled, root / filled.name)
        path = shard_path(root / filled.name, 0)
        path.write_bytes(path.read_bytes()[:cut])
        whole = sum(end <= cut for end in ends)
        for reopened in (False, True):
            with open_cache(root) as cache:
                assert cache.missing(SAMPLES) == ([] if reopened else list(SAMPLES[whole:]))
                if not reopened:
                    assert cache.recovery.kept == whole
                    lost = len(SAMPLES) - whole
                    partial = cut not in (0, *ends)
                    known = index == "covers all" or (index == "covers two" and cut < ends[1])
                    assert cache.recovery.dropped == (
                        lost if index == "covers all" else max(partial, 2 - whole) if known else partial
                    )
                    assert cache.recovery.dropped_bytes == cut - (0, *ends)[whole]
                    assert cache.disk_bytes == (0, *ends)[whole]
                for sample in SAMPLES:
                    cache.put(sample, hidden(sample))
                assert all(same(cache.get(sample).tensors(), hidden(sample)) for sample in SAMPLES)
                assert cache.disk_bytes == ends[-1]
                if not reopened:
                    # The second round finds an index again, or none, after what was put.
                    (cache.folder / INDEX_FILE).unlink(missing_ok=True)


@pytest.mark.parametrize("chunk_bytes", [5, 1 << 20])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_broken_record_in_the_middle(
    filled: Path,
    ends: list[int],
    open_cache: Any,
    hidden: Any,
    same: Any,
    monkeypatch: pytest.MonkeyPatch,
    with_index: bool,
    chunk_bytes: int,
) -> None:
    monkeypatch.setattr(shard_module, "CHUNK_BYTES", chunk_bytes)
    path = shard_path(filled, 0)
    data = bytearray(path.read_bytes())
    data[ends[0] + 2] ^= 1  # the second record's magic
    data[ends[3] + HEADER + 5] ^= 1  # the fifth one's body
    path.write_bytes(data)
    if not with_index:
        (filled / INDEX_FILE).unlink()
    with open_cache(filled.parent) as cache:
        assert cache.recovery.dropped == (0 if with_index else 2)
        assert [sample for sample in SAMPLES if not cache.get(sample)] == [1, 4]
        assert all(same(cache.get(sample).tensors(), hidden(sample)) for sample in (0, 2, 3, 5))


def test_an_index_cut_or_changed_anywhere(filled: Path, open_cache: Any, tmp_path: Path) -> None:
    whole = (filled / INDEX_FILE).read_bytes()
    for at in range(0, len(whole), 11):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            (filled / INDEX_FILE).write_bytes(data)
            with open_cache(filled.parent) as cache:
                assert cache.missing(SAMPLES) == []
                assert cache.verify() == []


def test_an_index_that_points_to_the_wrong_record(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache() as cache:
        for sample in (0, 5, 10):
            cache.put(sample, hidden(sample))
        [first], [second], [third] = (cache._samples[sample] for sample in (0, 5, 10))
    swapped = [Ref(0, first.layers, first.nbytes, 0, second.offset), Ref(5, first.layers, first.nbytes, 0, 0), third]
    save_index(cache.folder, cache.key.tag, {0: cache.disk_bytes}, swapped)
    with open_cache() as cache:
        assert [sample for sample in (0, 5, 10) if cache.get(sample)] == [10]
        assert same(cache.get(10).tensors(), hidden(10))


def test_a_shard_of_another_key(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache(model="other") as other, open_cache() as cache:
        for sample in range(3):
            other.put(sample, hidden(sample + 10))
        cache.put(0, hidden(0))
    shutil.copy(shard_path(other.folder, 0), shard_path(cache.folder, 1))
    with open_cache() as cache:
        assert cache.recovery.dropped == 3
        assert cache.missing(range(3)) == [1, 2]
        assert same(cache.get(0).tensors(), hidden(0))
        cache.compact()
        assert cache.disk_bytes == cache.record_bytes([0])


def test_a_shard_that_is_gone(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache(shard_bytes=1000) as cache:
        for sample in range(8):
            cache.put(sample, hidden(sample))
        gone = [ref.sample for refs in cache._samples.values() for ref in refs if ref.shard == 1]
    shard_path(cache.folder, 1).unlink()
    with open_cache(shard_bytes=1000) as cache:
        assert cache.missing(range(8)) == gone
        assert cache.recovery.dropped == len(gone) > 0
        for sample in gone:
            cache.put(sample, hidden(sample))
    assert all(same(got, hidden(sample)) for sample, got in enumerate(open_cache().read(range(8))))


def test_a_stale_index_is_not_believed_after_a_second_crash(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache() as cache:
        for sample in range(6):
            cache.put(sample, hidden(sample))
    path = shard_path(cache.folder, 0)
    path.write_bytes(path.read_bytes()[:700])
    second = open_cache()
    for sample in range(20, 30):
        second.put(sample, hidden(sample))
    # It dies before it writes an index, and the shard is longer than the old index says.
    _die(second)
    third = open_cache()
    assert third.missing(range(20, 30)) == []
    assert all(same(third.get(sample).tensors(), hidden(sample)) for sample in range(20, 30))
    assert third.verify() == []


def test_a_crash_while_compacting(open_cache: Any, hidden: Any, same: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies before its n-th write, rename or sync, for every n; nothing is lost, nothing deleted comes back."""
    for step in range(100):
        cache = open_cache(model=f"killed at {step}", shard_bytes=2000)
        for sample in range(10):
            cache.put(sample, hidden(sample))
        cache.delete([1, 2, 5, 6, 9])
        cache.flush()
        steps = count()

        def counted(function: Any, steps: Iterator[int] = steps, step: int = step) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps) == step:
                    raise Killed
                return function(*arguments, **options)

            return call

        survived = False
        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("write_all", "sync_folder", "save_index"):
                patch.setattr(disk_module, name, counted(getattr(disk_module, name)))
            patch.setattr(disk_module.os, "replace", counted(disk_module.os.replace))
            cache.compact()
            survived = True
        _die(cache)
        with open_cache(model=f"killed at {step}", shard_bytes=2000) as again:
            assert again.missing(range(10)) == [1, 2, 5, 6, 9]
            assert again.recovery.dropped == 0
            again.compact()
            assert again.disk_bytes == again.record_bytes([0, 3, 4, 7, 8])
            assert all(same(again.get(sample).tensors(), hidden(sample)) for sample in (0, 3, 4, 7, 8))
        if survived:
            break
    assert step > 8
