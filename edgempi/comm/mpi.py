"""The transport of mpi4py. The one file that imports it; importing it initialises MPI."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import accumulate
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

    def iall_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> MPI.Request:
        """Iallgatherv of bytes."""
        starts = [0, *accumulate(nbytes)][:-1]
        return self._comm.Iallgatherv([_raw(own), MPI.BYTE], [_raw(whole), list(nbytes), starts, MPI.BYTE])

    def iall_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> _Exchange:
        """Ialltoallv of bytes, through one buffer each way."""
        return _Exchange(self._comm, sent, received)

    def done(self, requests: Sequence[MPI.Request | _Exchange]) -> bool:
        """Drive communication; whether all requests are complete."""
        plain = [request.request if isinstance(request, _Exchange) else request for request in requests]
        if not MPI.Request.Testall(plain):
            return False
        for request in requests:
            if isinstance(request, _Exchange):
                request.hand_out()
        return True

    def some(self, requests: Sequence[MPI.Request]) -> list[int]:
        """Drive communication; the indices of the requests that are complete and were not before."""
        return list(MPI.Request.Testsome(list(requests)) or []) if requests else []

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


class _Exchange:
    """An Ialltoallv under way, with its buffers."""

    def __init__(self, communicator: MPI.Comm, sent: Sequence[Tensor], received: Sequence[Tensor]) -> None:
        self._received = list(received)
        self._out = torch.cat([_bytes(part) for part in sent])
        self._in = torch.empty(sum(part.nbytes for part in received), dtype=torch.uint8)
        counts = [[part.nbytes for part in parts] for parts in (sent, received)]
        starts = [[0, *accumulate(sizes)][:-1] for sizes in counts]
        self.request = communicator.Ialltoallv(
            [_raw(self._out), counts[0], starts[0], MPI.BYTE], [_raw(self._in), counts[1], starts[1], MPI.BYTE]
        )

    def hand_out(self) -> None:
        """Copy what came into the receivers' buffers; a second call does nothing."""
        start = 0
        for part in self._received:
            stop = start + part.nbytes
            _bytes(part).copy_(self._in[start:stop])
            start = stop
        self._received = []


def library_version() -> str:
    """The first line of what the MPI library says of itself."""
    return MPI.Get_library_version().splitlines()[0].strip("\x00 ,")


def _raw(tensor: Tensor) -> memoryview:
    # The tensor must be contiguous: a copy made here would be sent, or worse received into, and forgotten.
    assert tensor.is_contiguous()
    return memoryview(_bytes(tensor).numpy())  # type: ignore[arg-type]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
