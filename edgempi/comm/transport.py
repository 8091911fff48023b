"""What moves bytes: nonblocking sends and receives of contiguous tensors, and a bounded wait.

Everything above (rings, transfers between stages, control messages) is written against `Transport`, so it can be run
and tested without MPI. `Loopback` is the transport of a process alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from torch import Tensor

EAGER_POLL_S = 0.0002
"""How long a wait yields its core between polls before it starts to sleep. On a device with a processor quota every
poll is taken from the products that follow: with 2 ms, a ring under computation takes 10 % longer."""
POLL_S = 0.0001
"""How long it then sleeps between polls: a wait never spins on a core that another rank may need."""


class StuckError(RuntimeError):
    """A wait ran past its bound; the message says who waits for whom, in what, and for how long."""


class Transport(Protocol):
    """One rank's view of a set of ranks."""

    rank: int
    size: int

    def isend(self, tensor: Tensor, target: int, tag: int) -> Any:
        """Start to send a contiguous tensor; it must stay untouched until the request is done."""

    def irecv(self, tensor: Tensor, source: int, tag: int) -> Any:
        """Start to receive into a contiguous tensor."""

    def iall_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> Any:
        """Start to gather every rank's contiguous part, of so many bytes each, into `whole`; every rank must call."""

    def iall_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Any:
        """Start to send a contiguous part to every rank and receive one from each; every rank must call."""

    def done(self, requests: Sequence[Any]) -> bool:
        """Drive communication; whether all requests are complete."""

    def some(self, requests: Sequence[Any]) -> list[int]:
        """Drive communication; the indices of the requests that are complete and were not before."""

    def split(self, color: int, place: int) -> Transport:
        """The ranks that named the same color, in the order of their places; every rank must call."""

    def close(self) -> None:
        """Give back what `split` took; every rank of it must call."""

    def probe_size(self, source: int, tag: int) -> int | None:
        """Bytes of the next message from `source`, or None while there is none."""

    def abort(self, status: int) -> NoReturn:
        """End the job on all ranks."""


class Loopback:
    """The transport of one process: it has nobody to talk to."""

    rank = 0
    size = 1

    def isend(self, tensor: Tensor, target: int, tag: int) -> Any:
        """Never called: a rank does not send to itself."""
        raise RuntimeError(f"a lone rank cannot send to rank {target}")

    def irecv(self, tensor: Tensor, source: int, tag: int) -> Any:
        """Never called either."""
        raise RuntimeError(f"a lone rank cannot receive from rank {source}")

    def iall_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> Any:
        """Never called."""
        raise RuntimeError("a lone rank has nobody to gather from")

    def iall_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Any:
        """Never called."""
        raise RuntimeError("a lone rank has nobody to exchange with")

    def done(self, requests: Sequence[Any]) -> bool:
        """There is nothing to wait for."""
        return not requests

    def some(self, requests: Sequence[Any]) -> list[int]:
        """There is nothing to wait for."""
        return []

    def split(self, color: int, place: int) -> Loopback:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing was taken."""

    def probe_size(self, source: int, tag: int) -> int | None:
        """Nothing ever comes."""
        return None

    def abort(self, status: int) -> NoReturn:
        """End the process."""
        os._exit(status)


def wait_until(condition: Callable[[], bool], timeout_s: float, describe: Callable[[float], str]) -> float:
    """Poll `condition` until it holds, yielding first and sleeping later.

    Args:
        condition: polled; drives communication as it is evaluated.
        timeout_s: the bound.
        describe: from the seconds waited to the message of the error.

    Returns:
        Seconds waited.

    Raises:
        StuckError: the bound has passed.
    """
    start = time.perf_counter()
    waited = 0.0
    while not condition():
        waited = time.perf_counter() - start
        if waited > timeout_s:
            raise StuckError(describe(waited))
        if waited < EAGER_POLL_S:
            os.sched_yield()
        else:
            time.sleep(POLL_S)
    return time.perf_counter() - start
