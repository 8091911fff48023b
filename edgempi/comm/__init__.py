"""Moving bytes between ranks: the only room that knows MPI.

`transport` says what a way of moving bytes must offer (and holds the one for a single process), `mpi` is mpi4py's,
`world` is what the rest of edgempi sees of all ranks, `group` the ranks of one stage and their ring collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgempi.comm.group import Group
from edgempi.comm.traffic import Traffic
from edgempi.comm.transport import Loopback, StuckError, Transport
from edgempi.comm.world import World


@contextmanager
def open_world(timeout_s: float = 120.0) -> Iterator[World]:
    """All ranks that the launcher started; every rank must call. MPI is first touched here."""
    from edgempi.comm.mpi import MpiTransport

    yield World(MpiTransport.world(), timeout_s)


def lone_world() -> World:
    """A world of this process alone, without MPI."""
    return World(Loopback())


__all__ = ["Group", "Loopback", "StuckError", "Traffic", "Transport", "World", "lone_world", "open_world"]
