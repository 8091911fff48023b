"""A stale cache is never read, and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgempi.errors import UserError
from edgempi.finetune.cache.folder import KEY_FILE, remove_stale, stale
from edgempi.finetune.cache.key import CacheKey, differences, sample_id

CHANGES: dict[str, Any] = {
    "model": "other",
    "tokenizer": "other",
    "template": "other",
    "truncation": (64, 8),
    "layers": ("enc.0", "dec.1"),
    "width": 32,
    "dtype": "int8",
    "factor": 4,
    "seed": 1,
    "full": ("dec.1",),
    "compute_dtype": "bf16",
}


def test_the_changes_are_all_fields(make_key: Callable[..., CacheKey]) -> None:
    assert set(CHANGES) == set(make_key().as_dict()) - {"format"}


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_changes_is_another_cache(make_key: Any, open_cache: Any, hidden: Any, field: str) -> None:
    old = open_cache()
    old.put(1, hidden(1))
    changed = make_key(**{field: CHANGES[field]})
    assert changed.digest != old.key.digest
    assert changed.tag != old.key.tag
    new = open_cache(**{field: CHANGES[field]})
    assert new.missing([1]) == [1]
    [(folder, why)] = stale(new.folder.parent, new.key).items()
    assert folder == old.folder
    assert [difference.field for difference in why] == [field]
    assert f"{field}: cached with" in str(why[0])


def test_digest_does_not_change_with_the_process(make_key: Callable[..., CacheKey]) -> None:
    program = (
        "from edgempi.finetune.cache.key import CacheKey\n"
        f"print(CacheKey(**{ {k: v for k, v in make_key().as_dict().items() if k != 'format'}!r}).digest)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == make_key().digest


def test_a_folder_of_another_key_is_refused(tmp_path: Path, make_key: Any, open_cache: Any) -> None:
    open_cache(dtype="bf16").close()
    (tmp_path / make_key(dtype="bf16").digest).rename(tmp_path / make_key().digest)
    with pytest.raises(UserError, match="dtype: cached with bf16, now fp32"):
        open_cache()
    (tmp_path / make_key().digest / KEY_FILE).write_text("{")
    with pytest.raises(UserError, match="unreadable"):
        open_cache()


def test_a_key_of_another_version_is_told_apart(make_key: Callable[..., CacheKey]) -> None:
    key = make_key()
    cached = json.loads(key.to_json()) | {"format": 0, "pooling": "mean"}
    assert [difference.field for difference in differences(cached, key)] == ["format", "pooling"]
    assert not differences(json.loads(key.to_json()), key)


def test_stale_caches_are_removed_unless_in_use(tmp_path: Path, open_cache: Any, hidden: Any) -> None:
    used, unused, mine = open_cache(seed=1), open_cache(seed=2), open_cache()
    for cache in (used, unused, mine):
        cache.put(1, hidden(1))
    unused.close()
    torn = tmp_path / ("0" * 32)
    others = [tmp_path / "notes", tmp_path / "abc"]
    for folder in (torn, *others):
        folder.mkdir()
        (folder / KEY_FILE).write_text("{")
    assert remove_stale(tmp_path, mine.key) == sorted([unused.folder, torn])
    assert used.folder.exists()
    assert mine.folder.exists()
    assert not unused.folder.exists()
    assert all(folder.exists() for folder in others)  # nobody's cache
    assert remove_stale(tmp_path / "none", mine.key) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "fp8"},
        {"factor": 3},
        {"factor": 0},
        {"width": 0},
        {"layers": ()},
        {"layers": ("a", "a")},
        {"full": ("enc.9",)},
    ],
)
def test_keys_that_make_no_sense(make_key: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        make_key(**wrong)


def test_sample_ids_follow_the_tokens() -> None:
    assert sample_id([1, 2], [3]) == sample_id((1, 2), iter([3]))
    different = [sample_id([1, 2], [3]), sample_id([1, 2, 3]), sample_id([1], [2, 3]), sample_id([1, 2, 3], [])]
    assert len(set(different)) == 4
    assert all(0 <= sample < 1 << 64 for sample in different)
