"""The all-reduce of a bucket of gradients, under way while the backward pass goes on.

A ring over N ranks, in 2 (N - 1) messages of about an N-th of the bucket each. The bucket is cut into a piece for each
rank, equal but for one element; with fewer elements than ranks some are empty, and no message is sent for those.

    reduce-scatter  piece c starts at rank c + 1 as it is; ranks c + 2, c + 3 .. add their own, rank c adds last
    all-gather      every rank's piece travels on to all others

So the order of the additions is fixed for each piece, whenever messages come, and since one rank finishes it for all,
the sums are equal on all ranks to the last bit. They are taken in the dtype of the bucket: unlike in `comm/rings.py`
nothing is rounded to fp32, and the sum takes the place of the addends.

Source: ring all-reduce of Patarasuk and Yuan (JPDC 2009).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

from edgempi.comm.post import Arrival, Post
from edgempi.plan.apportion import apportion, spans

SCATTER, GATHER = 100, 101
"""Message tags, to which twice a sum's number is added."""
AHEAD = 2
"""Receives of partial sums that are posted at once: each has a buffer of a piece."""


class RingSum:
    """One all-reduce under way.

    Collective: every rank of the group makes one, with the same number and elements. It starts at once.

    Args:
        post: of the group.
        flat: (elements,), contiguous; holds the addends now and the sums once it is complete. Nobody else may touch it
            in between, and nobody may write to it before the sends of the group's post are complete (`Post.idle`).
        number: unlike that of any other sum of the group under way, below 5,000.
        unit: what its messages are counted for.
    """

    def __init__(self, post: Post, flat: Tensor, number: int, unit: str) -> None:
        self._post, self._unit = post, unit
        self._scatter_tag, self._gather_tag = SCATTER + 2 * number, GATHER + 2 * number
        size, rank = post.size, post.rank
        self._pieces = [flat[start:stop] for start, stop in spans(apportion(flat.numel(), [1.0] * size))]
        self._to_add = deque((rank - 2 - step) % size for step in range(size - 1))
        self._to_take = deque((rank - 1 - step) % size for step in range(size - 1))
        self._partial: deque[Arrival | None] = deque()
        self._whole: deque[Arrival | None] = deque()
        if size > 1:
            self._expect_partial()
            # A copy: its place is received into, maybe before this message is known to be gone.
            self._send(self._pieces[post.before].clone(), self._scatter_tag)

    @property
    def complete(self) -> bool:
        """Whether all sums are here, and all that others need of this rank is on its way."""
        return not self._to_take

    def poll(self) -> bool:
        """Drive communication, add and pass on what has arrived; whether the sum is complete."""
        self._post.let_go()
        while self._to_add and _here(self._partial[0]):
            self._add()
        while not self._to_add and self._to_take and _here(self._whole[0]):
            self._take()
        return self.complete

    def finish(self, meanwhile: Callable[[], None]) -> None:
        """Wait until it is complete, calling `meanwhile` as long.

        Raises:
            StuckError: the bound of the group's waits has passed; its text names the rank that is awaited.
        """

        def done() -> bool:
            meanwhile()
            return self.poll()

        if not self.poll():
            with self._post.traffic.within(self._unit):
                self._post.wait(done, "all-reduce", [self._post.before])

    def _add(self) -> None:
        piece, arrival = self._to_add.popleft(), self._partial.popleft()
        own = self._pieces[piece]
        self._expect_partial()
        if self._to_add:
            if arrival is not None:
                self._send(arrival.buffer.add_(own), self._scatter_tag)
            return
        if arrival is not None:
            own.add_(arrival.buffer)
        # All own addends are read, so their places may be received into.
        for other in self._to_take:
            self._whole.append(self._receive(self._pieces[other], self._gather_tag))
        self._send(own, self._gather_tag)

    def _take(self) -> None:
        piece, _ = self._to_take.popleft(), self._whole.popleft()
        if piece != self._post.after:
            self._send(self._pieces[piece], self._gather_tag)

    def _expect_partial(self) -> None:
        """Post receives in the order of sending, a few ahead."""
        while len(self._partial) < min(AHEAD, len(self._to_add)):
            like = self._pieces[self._to_add[len(self._partial)]]
            self._partial.append(self._receive(like.new_empty(like.shape), self._scatter_tag))

    def _receive(self, buffer: Tensor, tag: int) -> Arrival | None:
        """None where nothing comes, since nothing is there to be sent."""
        if not buffer.numel():
            return None
        with self._post.traffic.within(self._unit):
            return self._post.receive(buffer, self._post.before, tag)

    def _send(self, buffer: Tensor, tag: int) -> None:
        self._post.send(buffer, self._post.after, tag, self._unit)


def _here(arrival: Arrival | None) -> bool:
    return arrival is None or arrival.here()
