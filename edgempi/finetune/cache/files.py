"""Reading and writing all of a buffer, whole files, one writer per folder."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from edgempi.errors import UserError
from edgempi.finetune.cache.record import Buffer

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file cannot grow."""
LOCK_FILE = "lock"


def is_full(error: OSError) -> bool:
    """Whether there was no room, rather than something being wrong."""
    return error.errno in FULL


def write_all(descriptor: int, buffer: Buffer, offset: int) -> None:
    """Write all of a buffer at an offset; raises `OSError` where part of it may be there."""
    rest = memoryview(buffer)
    while rest.nbytes:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def read_all(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from an offset; returns how many bytes there were."""
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_whole(path: Path, data: Buffer) -> None:
    """Write a file under a temporary name, make it durable and rename it: it is there whole or as it was before."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            write_all(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WriterLock:
    """The one process that works with a folder; the kernel frees it when the process ends, however it ends.

    Args:
        folder: of a cache.

    Raises:
        UserError: another one works with it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 100, 0).decode(errors="replace") or "unknown"
            os.close(self._descriptor)
            raise UserError(
                f"activation cache {folder}", value=f"in use by process {holder}",
                rule="one process writes to a folder", remedy="End that one, or give each rank a folder of its own",
            ) from None  # fmt: skip
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)
