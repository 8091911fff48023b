"""The cache by what it promises: found after a restart, in parts, deleted for good, small, one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgempi.errors import UserError
from edgempi.finetune.cache.found import Budget, Tier
from edgempi.finetune.cache.shard import SUFFIX


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_found_again_after_a_restart(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache(shard_bytes=1500) as cache:
        assert [cache.put(sample, hidden(sample)) for sample in range(20)] == [Tier.DISK] * 20
        assert len(_shards(cache.folder)) > 3
    with open_cache(shard_bytes=1500) as cache:
        assert (cache.recovery.kept, cache.recovery.dropped) == (20, 0)
        assert cache.missing(range(22)) == [20, 21]
        for sample, got in enumerate(cache.read(range(20))):
            assert same(got, hidden(sample))
        assert not cache.read([21])[0]
        # A new sample only adds itself.
        before = cache.disk_bytes
        cache.put(20, hidden(20))
        assert cache.disk_bytes - before == cache.record_bytes([20])
        assert cache.put(20, hidden(20)) is Tier.DISK
        assert cache.disk_bytes - before == cache.record_bytes([20])
        assert (cache.counters.disk_hits, cache.counters.misses, cache.counters.stored) == (20, 1, 1)


def test_parts_of_a_sample_make_a_whole(open_cache: Any, hidden: Any, same: Any) -> None:
    cache = open_cache()
    cache.put(4, hidden(4, ("dec.0",)))
    assert 4 not in cache
    assert cache.get(4).tier is Tier.RECOMPUTE
    assert same(cache.get(4, ["dec.0"]).tensors(), hidden(4, ("dec.0",)))
    cache.put(4, hidden(4, ("enc.0", "dec.0", "enc.1")))
    assert cache.missing([4], ["enc.1", "dec.0"]) == []
    assert cache.missing([4]) == [4]
    cache.put(4, hidden(4))
    assert same(cache.get(4).tensors(), hidden(4))
    assert list(cache.get(4).tensors()) == list(cache.key.layers)
    # No layer was written twice.
    sizes = [cache.codec.nbytes({name: len(hidden(4)[name])}) for name in cache.key.layers]
    assert cache.disk_bytes < sum(sizes)


def test_deleted_is_deleted_after_a_restart_too(open_cache: Any, hidden: Any, same: Any) -> None:
    for flush in (False, True):
        root = {"model": f"flush {flush}"}
        cache = open_cache(**root, shard_bytes=1000)
        for sample in range(10):
            cache.put(sample, hidden(sample))
        if flush:
            cache.flush()
        assert cache.delete([3, 4, 99]) == 2
        cache.put(4, hidden(9))
        # As after a crash: no index of what happened since.
        cache._disk.close()
        cache._lock.release()
        cache._closed = True
        with open_cache(**root) as again:
            assert again.missing(range(10)) == [3]
            assert same(again.get(4).tensors(), hidden(9))


def test_compaction_removes_the_bytes(open_cache: Any, hidden: Any, same: Any) -> None:
    cache = open_cache(shard_bytes=1500)
    for sample in range(20):
        cache.put(sample, hidden(sample))
    gone = [0, 1, 2, 3, 4, 7, 19]
    traces = [bytes(hidden(sample)["enc.0"].numpy().tobytes()) for sample in gone]
    everything = b"".join(path.read_bytes() for path in _shards(cache.folder))
    assert all(trace in everything for trace in traces)
    before = cache.disk_bytes
    assert cache.delete(gone, compact=True) == 7
    left = [sample for sample in range(20) if sample not in gone]
    assert cache.disk_bytes == cache.record_bytes(left) < before
    assert cache.disk_bytes == sum(path.stat().st_size for path in _shards(cache.folder))
    everything = b"".join(path.read_bytes() for path in _shards(cache.folder))
    assert not any(trace in everything for trace in traces)
    assert cache.compact() == 0
    cache.put(19, hidden(19))
    for again in (cache, None):
        if again is None:
            cache.close()
            again = open_cache()
        assert again.missing(range(20)) == [sample for sample in gone if sample != 19]
        assert all(same(again.get(sample).tensors(), hidden(sample)) for sample in [*left, 19])
        assert again.verify() == []


def test_deleting_everything_leaves_nothing(open_cache: Any, hidden: Any) -> None:
    cache = open_cache(budget=Budget(1 << 20))
    cache.put(1, hidden(1))
    cache.delete([1], compact=True)
    assert (cache.disk_bytes, cache.memory_bytes, len(cache), _shards(cache.folder)) == (0, 0, 0, [])
    cache.put(2, hidden(2))
    cache.close()
    assert open_cache().missing([1, 2]) == [1]


def test_damage_is_a_miss_and_is_counted(open_cache: Any, hidden: Any, same: Any) -> None:
    with open_cache() as cache:
        for sample in range(4):
            cache.put(sample, hidden(sample))
        [path] = _shards(cache.folder)
    data = bytearray(path.read_bytes())
    data[cache.record_bytes([0]) + 100] ^= 1
    path.write_bytes(data)
    with open_cache() as cache:
        assert cache.recovery.dropped == 0
        assert cache.verify() == [1]
        assert cache.missing(range(4)) == [1]
        assert not cache.get(1)
        cache.put(1, hidden(1))
        assert cache.counters.recomputed == 1
        assert cache.counters.damaged == 1
        assert same(cache.get(1).tensors(), hidden(1))
        assert cache.compact() == cache.record_bytes([1])
        assert cache.verify() == []


def test_layers_are_named(open_cache: Any, hidden: Any) -> None:
    cache = open_cache()
    with pytest.raises(ValueError, match="without layers"):
        cache.put(1, {})
    with pytest.raises(ValueError, match="no layers"):
        cache.get(1, [])
    with pytest.raises(KeyError):
        cache.put(1, {"enc.9": hidden(1)["enc.0"]})


def test_one_writer(open_cache: Any, make_key: Any, tmp_path: Path) -> None:
    cache = open_cache()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        open_cache()
    open_cache(model="other")
    cache.close()
    cache.close()
    open_cache()


def test_a_writer_that_was_killed_leaves_what_it_put(open_cache: Any, make_key: Any, tmp_path: Path) -> None:
    program = f"""
import sys, time, torch
from pathlib import Path
from edgempi.finetune.cache.found import Budget
from edgempi.finetune.cache.key import CacheKey
from edgempi.finetune.cache.store import ActivationCache
fields = {make_key().as_dict()!r}
del fields["format"]
fields["layers"], fields["truncation"] = tuple(fields["layers"]), tuple(fields["truncation"])
cache = ActivationCache(Path({str(tmp_path)!r}), CacheKey(**fields | {{"full": ()}}), Budget())
for sample in range(5):
    cache.put(sample, {{name: torch.full((2, 16), float(sample)) for name in cache.key.layers}})
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=f"in use by process {writer.pid}"):
            open_cache()
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    cache = open_cache()
    assert cache.missing(range(5)) == []
    assert (cache.get(3).tensors()["dec.1"] == 3).all()


@pytest.mark.parametrize(("width", "full"), [(768, ()), (1024, ("dec.1",))])
@pytest.mark.parametrize(("factor", "bound"), [(1, 0.26), (8, 0.035)])
def test_sizes_on_disk(open_cache: Any, width: int, full: tuple[str, ...], factor: int, bound: float) -> None:
    """Everything in the folder, against the unpadded fp32 bytes: 12 + 12 layers, short sentences, two-token labels."""
    layers = (*(f"enc.{i}" for i in range(12)), *(f"dec.{i}" for i in range(12)))
    plain = 0
    with open_cache(dtype="int8", layers=layers, width=width, factor=factor, full=full) as cache:
        for sample in range(5):
            tokens = {name: 20 + sample * 10 if name.startswith("enc") else 2 for name in layers}
            plain += sum(tokens.values()) * width * 4
            cache.put(sample, {name: torch.randn(count, width) for name, count in tokens.items()})
    used = sum(path.stat().st_size for path in cache.folder.iterdir())
    assert used / plain <= bound


def test_files_are_private(open_cache: Any, hidden: Any) -> None:
    """Hidden states can be turned back into text."""
    with open_cache() as cache:
        cache.put(1, hidden(1))
    assert cache.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in _shards(cache.folder))
