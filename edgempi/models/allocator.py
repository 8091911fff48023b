"""Tell the allocators of glibc and torch what to do; where they are others, these do nothing.

Loading makes and drops buffers of every size between the tensors that stay. Left to itself the allocator keeps the
holes, a quarter of the model's size and more. While `returning` is open, each larger buffer is a mapping of its own
that goes back to the system when it is dropped; afterwards buffers are reused, since a forward pass wants the same ones
again and fresh pages cost it time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
SMALL_BYTES = 2**17
LARGEST_BYTES = 2**25  # the largest threshold that mallopt takes
KEPT_BYTES = 2**28


@contextmanager
def returning() -> Iterator[None]:
    """Give freed buffers back to the system while this is open, keep them for reuse afterwards."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, SMALL_BYTES)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, LARGEST_BYTES)
        libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def use_huge_pages() -> None:
    """Let torch ask for huge pages for larger tensors, where the system gives them to who asks.

    Products read weights that no cache holds, a page after another. To be called before torch makes its first tensor;
    what the environment says already stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back() -> None:
    """Return what is free to the system now, so that what stays resident is in use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
