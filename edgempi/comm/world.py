"""All ranks of the job: control messages, transfers by a list of moves, and the groups of the stages.

Control messages are small JSON texts; activations move as raw buffers; nothing is ever pickled.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from edgempi.comm.group import Group
from edgempi.comm.traffic import Traffic
from edgempi.comm.transfer import DATA, Pending, Transfer
from edgempi.comm.transport import Transport, wait_until
from edgempi.comm.wire import Cast, Wire
from edgempi.plan.layout import Layout

CONTROL = 1  # message tag
ALIVE = 3  # message tag: the word of a rank that is stuck, but there
LISTEN_S = 0.01
LARGEST_CONTROL_BYTES = 256 * 2**20

Result = TypeVar("Result")


class World:
    """Every rank of the job.

    Args:
        transport: what moves the bytes.
        timeout_s: the bound of every wait.
    """

    def __init__(self, transport: Transport, timeout_s: float = 120.0) -> None:
        self._transport = transport
        self.timeout_s = timeout_s
        self.traffic = Traffic()
        self.host = socket.gethostname()

    @property
    def rank(self) -> int:
        """This rank."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """How many ranks."""
        return self._transport.size

    @property
    def leads(self) -> bool:
        """Whether this rank is the one that talks to a person."""
        return self.rank == 0

    @contextmanager
    def patience(self, factor: float) -> Iterator[None]:
        """Allow waits `factor` times the usual bound, where others are known to be busy for long."""
        usual, self.timeout_s = self.timeout_s, self.timeout_s * factor
        try:
            yield
        finally:
            self.timeout_s = usual

    def only_on_rank_0(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on rank 0 while the others sleep; its result there, None elsewhere. Every rank must call."""
        result = work() if self.rank == 0 else None
        self.barrier()
        return result

    def group(self, color: int, place: int | None = None) -> Group:
        """The group of the ranks that name the same color, in the order of their places; every rank must call.

        Args:
            color: which group.
            place: where in it; None: world order.
        """
        place = self.rank if place is None else place
        # This wait is bounded, so the library's own wait in `split` is short.
        named = enumerate(self.all_gather_json([color, place]))
        members = [rank for _, rank in sorted((at, rank) for rank, (other, at) in named if other == color)]
        return Group(self._transport.split(color, place), members, self.traffic, lambda: self.timeout_s)

    def wait(self, requests: Sequence[Any], what: str) -> None:
        """Wait, within the bound, until the requests are complete."""
        waited = wait_until(
            lambda: self._transport.done(requests),
            self.timeout_s,
            lambda s: f"rank {self.rank} on {self.host} waits in {what}, {s:.0f} s; see cluster.timeout_s",
        )
        self.traffic.waited(waited)

    def broadcast_text(self, text: str | None, root: int = 0) -> str:
        """The text that `root` holds, on every rank; every rank must call."""
        if self.rank == root:
            assert text is not None
            self._send_text(text, [rank for rank in range(self.size) if rank != root])
            return text
        return self._receive_text(root)

    def gather_json(self, value: Any) -> list[Any] | None:
        """The values of all ranks in rank order, on rank 0 (None elsewhere); every rank must call."""
        if self.rank:
            self._send_text(json.dumps(value), [0])
            return None
        return [value, *(json.loads(self._receive_text(rank)) for rank in range(1, self.size))]

    def all_gather_json(self, value: Any) -> list[Any]:
        """The values of all ranks in rank order, on every rank; every rank must call."""
        gathered = self.gather_json(value)
        values: list[Any] = json.loads(self.broadcast_text(None if gathered is None else json.dumps(gathered)))
        return values

    def barrier(self) -> None:
        """Return when every rank has called."""
        self.all_gather_json(None)

    def begin_transfer(self, source: Layout, target: Layout, wire: Wire) -> Transfer:
        """Begin to bring a tensor from one layout to another; the ranks of either layout must call, in one order.

        Posts the receives; `Transfer.send` and `Transfer.receive` do the rest.
        """
        return Transfer(self._transport, self.traffic, self.wait, source, target, wire)

    def transfer(
        self, tensor: Tensor | None, source: Layout, target: Layout, dtype: torch.dtype
    ) -> tuple[Tensor | None, Pending]:
        """Bring a tensor from one layout to another; the ranks of either layout must call.

        Args:
            tensor: this rank's box under `source`, (rows, tokens, columns); None where it holds none.
            source: where the tensor lies.
            target: where it shall lie.
            dtype: what the tensor travels and arrives in.

        Returns:
            This rank's box under `target` (None where it holds none), received; and the sends still under way.
        """
        begun = self.begin_transfer(source, target, Cast(dtype))
        sends = begun.send(tensor)
        return begun.receive(tensor), sends

    def send(self, tensor: Tensor, target: int) -> None:
        """Send a contiguous tensor to a rank that receives it; blocks, within the bound."""
        self.wait([self._transport.isend(tensor, target, DATA)], f"send to rank {target}")

    def receive(self, tensor: Tensor, source: int) -> None:
        """Receive into a contiguous tensor from a rank that sends it; blocks, within the bound."""
        self.wait([self._transport.irecv(tensor, source, DATA)], f"receive from rank {source}")

    def silent(self, limit_s: float) -> list[int]:
        """The ranks from which no word comes: every rank that is stuck calls this, and so gives its own.

        Args:
            limit_s: how long to listen.
        """
        unheard = [rank for rank in range(self.size) if rank != self.rank]
        word = torch.zeros(1, dtype=torch.uint8)
        # Not waited for: a silent rank does not take it, and the job ends here.
        sends = [self._transport.isend(word, rank, ALIVE) for rank in unheard]
        end = time.monotonic() + limit_s
        while unheard and time.monotonic() < end:
            self._transport.done(sends)
            unheard = [rank for rank in unheard if self._transport.probe_size(rank, ALIVE) is None]
            time.sleep(LISTEN_S)
        return unheard

    def abort(self, status: int) -> NoReturn:
        """End the job on all ranks at once."""
        self._transport.abort(status)

    def _send_text(self, text: str, targets: Sequence[int]) -> None:
        data = bytearray(text.encode())
        buffer = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        requests = [self._transport.isend(buffer, rank, CONTROL) for rank in targets]
        self.wait(requests, f"control message to rank {', '.join(map(str, targets))}")

    def _receive_text(self, source: int) -> str:
        sizes: list[int] = []

        def arrived() -> bool:
            size = self._transport.probe_size(source, CONTROL)
            sizes.extend([] if size is None else [size])
            return bool(sizes)

        what = f"control message from rank {source}"
        wait_until(arrived, self.timeout_s, lambda s: f"rank {self.rank} on {self.host} waits in {what}, {s:.0f} s")
        if sizes[0] > LARGEST_CONTROL_BYTES:
            raise RuntimeError(f"{what} of {sizes[0]} bytes is no control message")
        buffer = torch.empty(sizes[0], dtype=torch.uint8)
        self.wait([self._transport.irecv(buffer, source, CONTROL)], what)
        return bytes(buffer.numpy()).decode()
