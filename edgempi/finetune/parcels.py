"""Records of the activation cache on their way between two devices, chunk after chunk.

A chunk is three messages: how many records there are and how long the other two are (24 bytes), their headers, their
bodies. A chunk without records is the last. A device sends its next chunks when those before have left, and so never
holds more than one for each receiver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgempi.comm.post import Arrival, Post
from edgempi.finetune.cache.codec import octets
from edgempi.finetune.cache.record import parse
from edgempi.finetune.cache.store import ActivationCache

NOTE, HEADERS, BODIES = 23, 24, 25
"""Message tags."""
BODY_UNIT, FRAME_UNIT = "cache", "cache frame"
"""What bodies are counted for, and what goes with them."""

Asked = Sequence[tuple[Sequence[str], Sequence[int]]]
"""Layers and the samples of which they are asked for."""


class Outbound:
    """What one device sends another.

    Args:
        post: of all ranks.
        target: the receiver.
        cache: of this device.
        asked: what the receiver needs.
        chunk_bytes: a chunk is closed once its bodies have so many.
    """

    def __init__(self, post: Post, target: int, cache: ActivationCache, asked: Asked, chunk_bytes: int) -> None:
        self._post, self._target, self._chunk_bytes = post, target, chunk_bytes
        self._left = _records(cache, asked)
        self.records, self.body_bytes, self.frame_bytes = 0, 0, 0

    def next(self) -> bool:
        """Send the next chunk; False if it was the empty one at the end. Does not wait."""
        headers: list[Tensor] = []
        bodies: list[Tensor] = []
        gathered = 0
        for record in self._left:
            start = parse(octets(record)).header_bytes
            headers.append(record[:start])
            bodies.append(record[start:])
            gathered += record.numel() - start
            if gathered >= self._chunk_bytes:
                break
        note = torch.tensor([len(headers), sum(header.numel() for header in headers), gathered])
        self._send(note, NOTE, FRAME_UNIT)
        if headers:
            self._send(torch.cat(headers), HEADERS, FRAME_UNIT)
            self._send(torch.cat(bodies), BODIES, BODY_UNIT)
        self.records += len(headers)
        self.body_bytes += gathered
        self.frame_bytes += note.nbytes + int(note[1])
        return bool(headers)

    def _send(self, buffer: Tensor, tag: int, unit: str) -> None:
        self._post.send(buffer, self._target, tag, unit)


class Inbound:
    """What one device takes from another.

    Args:
        post: of all ranks.
        source: the sender.
        cache: of this device.
    """

    def __init__(self, post: Post, source: int, cache: ActivationCache) -> None:
        self._post, self._source, self._cache = post, source, cache
        self._note: Arrival | None = self._receive(torch.empty(3, dtype=torch.int64), NOTE)
        self._chunk: list[Arrival] = []
        self._waiting: list[Arrival] = []
        self.taken = 0
        self.ended = False

    def poll(self) -> bool:
        """Drive communication and keep what has arrived; whether anything had."""
        if self.ended:
            return False
        if self._note is not None:
            if not self._note.here():
                return False
            records, *sizes = self._note.buffer.tolist()
            self._note = None
            self.ended = not records
            if records:
                buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
                self._chunk = [self._receive(b, tag) for b, tag in zip(buffers, (HEADERS, BODIES), strict=True)]
                self._waiting = list(self._chunk)
            return True
        for index in sorted(self._post.arrived(self._waiting), reverse=True):
            del self._waiting[index]
        if self._waiting:
            return False
        headers, bodies = (arrival.buffer for arrival in self._chunk)
        self._chunk = []
        self._note = self._receive(torch.empty(3, dtype=torch.int64), NOTE)
        self.taken += self._cache.add_records(_joined(headers, bodies))
        return True

    def _receive(self, buffer: Tensor, tag: int) -> Arrival:
        with self._post.traffic.within(BODY_UNIT if tag == BODIES else FRAME_UNIT):
            return self._post.receive(buffer, self._source, tag)


def _records(cache: ActivationCache, asked: Asked) -> Iterator[Tensor]:
    """One after another, so that no more than one is in memory."""
    for layers, samples in asked:
        for sample in samples:
            yield from cache.records([sample], layers)


def _joined(headers: Tensor, bodies: Tensor) -> Iterator[Tensor]:
    """Records of their headers, end to end, and their bodies."""
    head, body = 0, 0
    while head < headers.numel():
        header = parse(octets(headers[head:]))
        yield torch.cat((headers[head : head + header.header_bytes], bodies[body : body + header.body_bytes]))
        head, body = head + header.header_bytes, body + header.body_bytes
