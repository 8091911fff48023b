"""Hidden states to the body of a record and back, all rows of a record at once.

A body has two blocks of rows: those of the layers that are projected, (R, D / factor), and those of the layers that are
kept full, (F, D); within a block, layer after layer in the table's order, padding left out. With a floating-point dtype
the body is the two blocks. With int8 it is the fp32 scales of all rows, R then F, then the codes of the two blocks: a
scale is its row's largest magnitude over 127, so an element errs by at most half a step.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from edgempi.finetune.cache.key import FLOATS, CacheKey
from edgempi.finetune.cache.projection import projection
from edgempi.finetune.cache.record import SAMPLE, DamagedError, Header, check, header_bytes

LARGEST = 127
SCALE_BYTES = 4
TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

Table = tuple[tuple[int, int], ...]


def octets(record: Tensor) -> memoryview:
    """The bytes of a uint8 tensor, as a view."""
    return memoryview(record.numpy())  # type: ignore[arg-type]


class Codec:
    """Writes and reads the records of one key.

    Args:
        key: the form that activations are kept in.
    """

    def __init__(self, key: CacheKey) -> None:
        self.key, self._tag = key, key.tag
        self._place = {layer: place for place, layer in enumerate(key.layers)}
        self._full = frozenset(self._place[layer] for layer in key.full)
        self._matrix = projection(key.width, key.factor, key.seed) if key.factor > 1 else None

    def place(self, layer: str) -> int:
        """Where a layer stands in the key; raises `KeyError` where it does not."""
        return self._place[layer]

    def project(self, x: Tensor) -> Tensor:
        """What is kept of (..., D) hidden states before rounding: (..., D / factor), in fp32 at least.

        A backbone in bf16 has the projection that a side network in fp32 would take of what it gives.
        """
        if self._matrix is None:
            return x
        exact = torch.promote_types(x.dtype, self._matrix.dtype)
        return x.to(exact) @ self._matrix.to(exact)

    def nbytes(self, tokens: Mapping[str, int]) -> int:
        """The length of a record of these layers, by the tokens of each."""
        table = self._table(tokens)
        projected, full = self._rows(table)
        return header_bytes(len(table)) + self._body_bytes(projected, full)

    def encode(self, sample: int, layers: Mapping[str, Tensor]) -> Tensor:
        """The record of hidden states by layer, (T, D) each in a floating-point dtype: bytes in a tensor of its own.

        Raises:
            ValueError: a layer that the key does not name, or one of another shape or kind; a sample out of range.
        """
        if not 0 <= sample < 1 << 64:
            raise ValueError(f"sample {sample} has no place in 64 bits")
        for name, x_TD in layers.items():
            if name not in self._place:
                raise ValueError(f"layer {name} is none of {', '.join(self.key.layers)}")
            if x_TD.dim() != 2 or x_TD.shape[1] != self.key.width or not x_TD.is_floating_point():
                raise ValueError(f"layer {name} is {x_TD.dtype} {tuple(x_TD.shape)}, not (tokens, {self.key.width})")
        table = self._table({name: len(x_TD) for name, x_TD in layers.items()})
        projected, full = self._rows(table)
        start = header_bytes(len(table))
        record = torch.empty(start + self._body_bytes(projected, full), dtype=torch.uint8)
        body = record[start:]
        for block, scales_R1, codes_RW in self._blocks(body, projected, full):
            names = [self.key.layers[place] for place, _ in table if (place in self._full) == block]
            if not names:
                continue
            x_RD = torch.cat([layers[name].detach() for name in names])
            x_RW = x_RD if block else self.project(x_RD)
            if scales_R1 is None:
                codes_RW.copy_(x_RW)
            else:
                _quantise(x_RW.float(), scales_R1, codes_RW)
        header = Header(SAMPLE, self._tag, sample, table, body.numel(), zlib.crc32(octets(body)))
        record[:start] = torch.frombuffer(bytearray(header.pack()), dtype=torch.uint8)
        return record

    def check(self, record: Tensor) -> Header:
        """The header of a record that is whole and of this key; raises `DamagedError` otherwise."""
        header = check(octets(record))
        if header.tag != self._tag:
            raise DamagedError("made with another key")
        if header.kind != SAMPLE or len(set(header.layers)) < len(header.table):
            raise DamagedError("no layers of a sample")
        if any(place >= len(self.key.layers) for place in header.layers):
            raise DamagedError("a layer that the key does not name")
        if header.body_bytes != self._body_bytes(*self._rows(header.table)):
            raise DamagedError("the table does not fit the body")
        return header

    def decode(self, record: Tensor, header: Header, dtype: torch.dtype) -> dict[str, Tensor]:
        """The layers of a record that was checked, (T, D / factor) each, or (T, D) if full; no views of the record."""
        result: dict[str, Tensor] = {}
        body = record[header.header_bytes :]
        for block, scales_R1, codes_RW in self._blocks(body, *self._rows(header.table)):
            if scales_R1 is None:
                x_RW = codes_RW.to(dtype, copy=True)
            else:
                x_RW = torch.mul(codes_RW, scales_R1).to(dtype)
            mine = [(place, tokens) for place, tokens in header.table if (place in self._full) == block]
            parts = x_RW.split([tokens for _, tokens in mine])
            result.update((self.key.layers[place], x_TW) for (place, _), x_TW in zip(mine, parts, strict=True))
        return result

    def part(self, record: Tensor, header: Header, places: Collection[int]) -> Tensor:
        """The record of some layers of a record, to the bit; the record itself where these are all."""
        if set(header.layers) <= set(places):
            return record
        table = tuple(row for row in header.table if row[0] in places)
        start, counts = header_bytes(len(table)), self._rows(table)
        result = torch.empty(start + self._body_bytes(*counts), dtype=torch.uint8)
        body = result[start:]
        whole = self._blocks(record[header.header_bytes :], *self._rows(header.table))
        for (block, *old), (_, *new) in zip(whole, self._blocks(body, *counts), strict=True):
            mine = [(place in places, tokens) for place, tokens in header.table if (place in self._full) == block]
            chosen_R = torch.tensor([taken for taken, tokens in mine for _ in range(tokens)], dtype=torch.bool)
            for source_R, target_R in zip(old, new, strict=True):
                if source_R is not None and target_R is not None:
                    target_R.copy_(source_R[chosen_R])
        cut = Header(SAMPLE, self._tag, header.sample, table, body.numel(), zlib.crc32(octets(body)))
        result[:start] = torch.frombuffer(bytearray(cut.pack()), dtype=torch.uint8)
        return result

    def _table(self, tokens: Mapping[str, int]) -> Table:
        return tuple(sorted((self._place[name], count) for name, count in tokens.items()))

    def _rows(self, table: Table) -> tuple[int, int]:
        """Rows of the projected and of the full layers."""
        full = sum(tokens for place, tokens in table if place in self._full)
        return sum(tokens for _, tokens in table) - full, full

    def _body_bytes(self, projected: int, full: int) -> int:
        columns = projected * self.key.kept_width + full * self.key.width
        scales = 0 if self.key.dtype in FLOATS else projected + full
        return columns * TORCH[self.key.dtype].itemsize + scales * SCALE_BYTES

    def _blocks(self, body: Tensor, projected: int, full: int) -> Iterator[tuple[bool, Tensor | None, Tensor]]:
        """Views of the projected and the full block: whether it is the full one, its scales (R, 1), its elements."""
        scales: Tensor | None = None
        if self.key.dtype not in FLOATS:
            cut = (projected + full) * SCALE_BYTES
            scales, body = body[:cut].view(torch.float32).view(-1, 1), body[cut:]
        elements = body.view(TORCH[self.key.dtype])
        cut = projected * self.key.kept_width
        yield False, scales if scales is None else scales[:projected], elements[:cut].view(-1, self.key.kept_width)
        yield True, scales if scales is None else scales[projected:], elements[cut:].view(-1, self.key.width)


def _quantise(x_RW: Tensor, scales_R1: Tensor, codes_RW: Tensor) -> None:
    """Codes and scales of rows; what is not finite makes its row's scale so, and is seen again when it is read."""
    if not len(x_RW):
        return
    torch.div(x_RW.abs().amax(dim=1, keepdim=True), LARGEST, out=scales_R1)
    # A row of zeros has scale zero; any divisor will do for it.
    factors_R1 = scales_R1.clamp_min(torch.finfo(torch.float32).tiny).reciprocal_()
    codes_RW.copy_(torch.mul(x_RW, factors_R1).round_().nan_to_num_(0).clamp_(-LARGEST, LARGEST))
