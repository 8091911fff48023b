"""The transport of mpi4py. The one file that imports it; importing it initialises MPI."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NoReturn

import mpi4py
import torch
from torch import Tensor

mpi4py.rc.thread_level = (
    "funneled"  # one thread talks; the cheapest level that libraries with threads of their own allow
)

from mpi4py import MPI  # noqa: E402

ABORT_PAUSE_S = 0.3
"""What a rank wrote just before an abort is lost where its launcher has not read it yet (MPICH's does not drain)."""


class MpiTransport:
    """One communicator. Messages are raw bytes, so every dtype travels, bfloat16 too.

    Args:
        communicator: owned by this object; a clone, so that edgempi's messages cannot meet anybody else's.
    """

    def __init__(self, communicator: MPI.Comm) -> None:
        self._comm = communicator
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()

    @classmethod
    def world(cls) -> MpiTransport:
        """A clone of the world; every rank must call."""
        return cls(MPI.COMM_WORLD.Dup())

    def isend(self, tensor: Tensor, target: int, tag: int) -> MPI.Request:
        """Start to send the bytes of a contiguous tensor."""
        return self._comm.Isend([_raw(tensor), MPI.BYTE], target, tag)

    def irecv(self, tensor: Tensor, source: int, tag: int) -> MPI.Request:
        """Start to receive into the bytes of a contiguous tensor."""
        return self._comm.Irecv([_raw(tensor), MPI.BYTE], source, tag)

    def done(self, requests: Sequence[MPI.Request]) -> bool:
        """Drive communication; whether all requests are complete."""
        return MPI.Request.Testall(list(requests))

    def split(self, color: int, place: int) -> MpiTransport:
        """The ranks that named the same color, in the order of their places."""
        return MpiTransport(self._comm.Split(color, place))

    def close(self) -> None:
        """Free the communicator; every rank of it must call."""
        self._comm.Free()

    def probe_size(self, source: int, tag: int) -> int | None:
        """Bytes of the next message from `source`, or None while there is none."""
        status = MPI.Status()
        return status.Get_count(MPI.BYTE) if self._comm.Iprobe(source, tag, status) else None

    def abort(self, status: int) -> NoReturn:
        """End the job on all ranks."""
        time.sleep(ABORT_PAUSE_S)
        MPI.COMM_WORLD.Abort(status)
        os._exit(status)  # MPICH's launcher may still be on its way to kill this rank


def library_version() -> str:
    """The first line of what the MPI library says of itself."""
    return MPI.Get_library_version().splitlines()[0].strip("\x00 ,")


def _raw(tensor: Tensor) -> memoryview:
    # The tensor must be contiguous: a copy made here would be sent, or worse received into, and forgotten.
    assert tensor.is_contiguous()
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
