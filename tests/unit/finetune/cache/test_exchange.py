"""Records pass between caches as bytes: none decoded, each counted, damage refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgempi.finetune.cache.found import Budget, Tier
from edgempi.finetune.cache.record import DamagedError


def test_stages_and_rows_become_shards_of_samples(open_cache: Any, hidden: Any, same: Any, tmp_path: Path) -> None:
    """Two stages of two devices each; afterwards each device has all layers of its own samples."""
    stages = (("enc.0", "enc.1"), ("dec.0", "dec.1"))
    samples = range(12)
    devices = [open_cache(tmp_path / f"device{d}", dtype="int8") for d in range(4)]
    for device, cache in enumerate(devices):
        for sample in samples:
            if sample % 2 == device % 2:
                cache.put(sample, hidden(sample, stages[device // 2]))
    whole = open_cache(tmp_path / "whole", dtype="int8")
    for sample in samples:
        whole.put(sample, hidden(sample))
    # Samples 0, 4, 8 go to device 0, samples 1, 5, 9 to device 1, and so on; what a device has of its own stays.
    total = sum(cache.record_bytes(samples) for cache in devices)
    stays = sum(cache.record_bytes(samples[device::4]) for device, cache in enumerate(devices))
    moved = 0
    for source, cache in enumerate(devices):
        for target, other in enumerate(devices):
            mine = [sample for sample in samples[target::4] if sample % 2 == source % 2]
            if source == target or not mine:
                continue
            records = cache.records(mine)
            buffer = b"".join(bytes(record.numpy()) for record in records)
            assert len(buffer) == cache.record_bytes(mine)
            moved += len(buffer)
            assert other.add_records([buffer]) == len(mine)
            cache.delete(mine)
    assert moved == total - stays
    for device, cache in enumerate(devices):
        cache.compact()
        assert cache.missing(samples) == [sample for sample in samples if sample % 4 != device]
        for sample in cache.samples():
            assert same(cache.get(sample).tensors(), whole.get(sample).tensors())
        assert cache.counters.imported == 3
    assert sum(cache.disk_bytes for cache in devices) == total


def test_known_records_are_left_out(open_cache: Any, hidden: Any, tmp_path: Path) -> None:
    source, target = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    for sample in range(3):
        source.put(sample, hidden(sample))
    assert target.add_records(source.records([0, 1])) == 2
    before = target.disk_bytes
    assert target.add_records(source.records([0, 1, 2])) == 1
    assert target.disk_bytes == source.disk_bytes > before
    assert source.records([77]) == []


def test_bytes_are_copied_as_they_are(open_cache: Any, hidden: Any, tmp_path: Path) -> None:
    source, target = open_cache(tmp_path / "a", dtype="int8"), open_cache(tmp_path / "b", dtype="int8")
    source.put(1, hidden(1))
    target.add_records(source.records([1]))
    assert torch.equal(*(cache.records([1])[0] for cache in (source, target)))


def test_damage_and_other_keys_are_refused(open_cache: Any, hidden: Any, tmp_path: Path) -> None:
    source, target = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    for sample in range(3):
        source.put(sample, hidden(sample))
    good, broken, _ = (record.clone() for record in source.records(range(3)))
    broken[-1] ^= 1
    with pytest.raises(DamagedError, match="checksum"):
        target.add_records([good, broken])
    assert target.samples() == [0]
    with pytest.raises(DamagedError):
        target.add_records([good[:-3]])
    with pytest.raises(DamagedError):
        target.add_records([b"nothing of the kind, but long enough to be a header"])
    with pytest.raises(DamagedError, match="another key"):
        open_cache(tmp_path / "c", model="other").add_records([good])


def test_no_room_for_what_comes(open_cache: Any, hidden: Any, tmp_path: Path) -> None:
    source = open_cache(tmp_path / "a")
    for sample in (0, 5, 10):
        source.put(sample, hidden(sample))
    target = open_cache(tmp_path / "b", budget=Budget(0, source.record_bytes([0, 5])))
    assert target.add_records(source.records([0, 5, 10])) == 2
    assert target.counters.refused == 1
    assert target.get(10).tier is Tier.RECOMPUTE


def test_a_damaged_record_is_not_passed_on(open_cache: Any, hidden: Any) -> None:
    cache = open_cache()
    for sample in range(3):
        cache.put(sample, hidden(sample))
    [path] = cache.folder.glob("*.shard")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(cache.records(range(3))) == 2
    assert cache.missing(range(3)) == [2]
