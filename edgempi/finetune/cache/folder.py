"""The folders of a device's caches: each says in `key.json` what it was made from, and is read for that key alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from edgempi.config.files import write_atomic
from edgempi.errors import UserError
from edgempi.finetune.cache.files import WriterLock
from edgempi.finetune.cache.key import CacheKey, Difference, differences

KEY_FILE = "key.json"
NAME = re.compile(r"[0-9a-f]{32}")
"""Of a folder: its key's digest."""


def take(folder: Path, key: CacheKey) -> WriterLock:
    """Make a folder where there is none, and hold it for a key.

    Raises:
        UserError: it cannot be written to, another process holds it, or it was made with another key.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = WriterLock(folder)
        try:
            _claim(folder, key)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise UserError(
            f"activation cache {folder}", value=error.strerror, rule="its folder can be written to",
            remedy="Free some space, choose another folder, or train without a cache",
        ) from error  # fmt: skip
    return lock


def _claim(folder: Path, key: CacheKey) -> None:
    """Write a new folder's `key.json`, or compare it."""
    if not (folder / KEY_FILE).exists():
        write_atomic(folder / KEY_FILE, json.dumps(key.as_dict(), indent=2) + "\n")
        return
    why = differences(_read(folder), key)
    if why:
        raise UserError(
            f"activation cache {folder}", value="; ".join(map(str, why)), rule="a stale cache is not read",
            remedy="Delete the folder: it was edited, or copied to a wrong name",
        )  # fmt: skip


def stale(root: Path, key: CacheKey) -> dict[Path, tuple[Difference, ...]]:
    """The caches under `root` that were made with another key, and why each does not serve."""
    folders = sorted(path.parent for path in root.glob(f"*/{KEY_FILE}") if path.parent.name != key.digest)
    return {
        folder: why for folder in folders
        if NAME.fullmatch(folder.name) and (why := differences(_read(folder), key))
    }  # fmt: skip


def remove_stale(root: Path, key: CacheKey) -> list[Path]:
    """Delete the caches under `root` that were made with another key; returns which.

    Those in use stay, and those that this user may not delete.
    """
    removed = []
    for folder in stale(root, key):
        try:
            lock = WriterLock(folder)
        except (UserError, OSError):
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()
        if not folder.exists():
            removed.append(folder)
    return removed


def _read(folder: Path) -> object:
    try:
        return json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
