"""Say how far a long run is: a line every few seconds, from the rank that talks to a person.

A bar that redraws itself needs a terminal, and a rank never has one: its output comes through the launcher and the
parent, line by line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from edgempi.comm import World

EVERY_S = 5.0

Item = TypeVar("Item")


def told(world: World, items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, one by one, with a line on standard error now and then while they last."""
    start = last = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if world.leads and done and now - last > EVERY_S:
            left_s = (now - start) / done * (len(items) - done)
            sys.stderr.write(f"edgempi: {what}: {done} of {len(items)}, about {left_s:.0f} s left\n")
            sys.stderr.flush()
            last = now
        yield item
