"""A transport between threads, as strict as MPI may be: a send reads its tensor only when the receiver takes it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgempi.comm import World

Result = TypeVar("Result")

COLLECTIVE = 99  # message tag: collectives match in the order of their calls


@dataclass
class Message:
    """A send, or a receive that waits for one."""

    tensor: Tensor
    complete: bool = False


@dataclass
class Hub:
    """What the ranks of one communicator share: a queue of sends and one of receives for each (source, target, tag)."""

    size: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    sends: dict[tuple[int, int, int], deque[Message]] = field(default_factory=lambda: defaultdict(deque))
    receives: dict[tuple[int, int, int], deque[Message]] = field(default_factory=lambda: defaultdict(deque))
    colors: dict[int, dict[int, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    parts: dict[tuple[int, int], Hub] = field(default_factory=dict)
    everyone: threading.Condition = field(default_factory=threading.Condition)


class ThreadTransport:
    """One rank's end.

    Args:
        hub: shared by all ranks.
        rank: this one.
    """

    def __init__(self, hub: Hub, rank: int) -> None:
        self._hub, self.rank, self.size = hub, rank, hub.size
        self._splits = 0

    def isend(self, tensor: Tensor, target: int, tag: int) -> Message:
        return self._post(self._hub.sends, (self.rank, target, tag), tensor)

    def irecv(self, tensor: Tensor, source: int, tag: int) -> Message:
        return self._post(self._hub.receives, (source, self.rank, tag), tensor)

    def _post(self, queues: Any, key: tuple[int, int, int], tensor: Tensor) -> Message:
        assert tensor.is_contiguous()
        assert key[0] != key[1]
        message = Message(tensor)
        with self._hub.lock:
            queues[key].append(message)
        return message

    def iall_gather(self, own: Tensor, whole: Tensor, nbytes: Sequence[int]) -> list[Message]:
        parts = list(whole.split(list(nbytes)))
        own = own.view(-1).view(torch.uint8)
        parts[self.rank].copy_(own)
        others = [rank for rank in range(self.size) if rank != self.rank]
        receives = [self.irecv(parts[rank], rank, COLLECTIVE) for rank in others]
        return receives + [self.isend(own, rank, COLLECTIVE) for rank in others]

    def iall_to_all(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> list[Message]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        receives = [self.irecv(received[rank], rank, COLLECTIVE) for rank in others]
        return receives + [self.isend(sent[rank], rank, COLLECTIVE) for rank in others]

    def done(self, requests: Sequence[Message | list[Message]]) -> bool:
        hub = self._hub
        requests = [one for request in requests for one in (request if isinstance(request, list) else [request])]
        with hub.lock:
            for key, receives in list(hub.receives.items()):
                sends = hub.sends[key]
                while receives and sends:
                    sent, received = sends.popleft(), receives.popleft()
                    assert sent.tensor.nbytes == received.tensor.nbytes, key
                    received.tensor.copy_(sent.tensor.view(received.tensor.shape))
                    sent.complete = received.complete = True
            return all(request.complete for request in requests)

    def some(self, requests: Sequence[Message]) -> list[int]:
        self.done([])
        return [index for index, request in enumerate(requests) if request.complete]

    def probe_size(self, source: int, tag: int) -> int | None:
        with self._hub.lock:
            waiting = self._hub.sends[source, self.rank, tag]
            return waiting[0].tensor.nbytes if waiting else None

    def split(self, color: int, place: int) -> ThreadTransport:
        hub, turn = self._hub, self._splits
        self._splits += 1
        with hub.everyone:
            colors = hub.colors[turn]
            colors[self.rank] = (color, place)
            hub.everyone.notify_all()
            hub.everyone.wait_for(lambda: len(colors) == self.size)
            ranks = [rank for _, rank in sorted((at, rank) for rank, (chosen, at) in colors.items() if chosen == color)]
            part = hub.parts.setdefault((turn, color), Hub(len(ranks)))
        return ThreadTransport(part, ranks.index(self.rank))

    def close(self) -> None:
        pass

    def abort(self, status: int) -> None:
        raise SystemExit(status)


def on_ranks(size: int, run: Callable[[World], Result], timeout_s: float = 10.0) -> list[Result]:
    """Run `run` on every rank of a world of threads; the results in rank order, or the first rank's error."""
    hub = Hub(size)
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def body(rank: int) -> None:
        try:
            with torch.inference_mode():
                results[rank] = run(World(ThreadTransport(hub, rank), timeout_s))
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 5)
    for rank in sorted(errors):
        raise errors[rank]
    return [results[rank] for rank in range(size)]
