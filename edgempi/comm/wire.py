"""The forms in which tensors travel: rounded to a floating-point dtype, or int8 with a scale for each row.

A form turns a tensor into one contiguous buffer and back; sums are always taken on what comes out of `decode`.
Shapes: B batch rows, S tokens, D columns; a "row" of int8 is one token of one batch row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""(rows, tokens, columns) of a tile."""

LARGEST = 127
SCALE_BYTES = 4


class Wire(Protocol):
    """A form of travelling."""

    @property
    def name(self) -> str:
        """As plans write it."""

    def encode(self, x_BSD: Tensor) -> Tensor:
        """The contiguous buffer that travels; `x_BSD` itself where it is in this form already."""

    def buffer(self, shape: Shape) -> Tensor:
        """An uninitialised buffer to receive a tile of that shape into."""

    def decode(self, buffer: Tensor, shape: Shape) -> Tensor:
        """The tile (B, S, D) in a floating-point dtype, maybe a view of the buffer."""


class Cast:
    """Elements rounded to a dtype.

    Args:
        dtype: which.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    @property
    def name(self) -> str:
        """As plans write it."""
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(self._dtype, str(self._dtype))

    def encode(self, x_BSD: Tensor) -> Tensor:
        """Round."""
        return x_BSD.to(self._dtype).contiguous()

    def buffer(self, shape: Shape) -> Tensor:
        """A tensor of that shape."""
        return torch.empty(shape, dtype=self._dtype)

    def decode(self, buffer: Tensor, shape: Shape) -> Tensor:
        """The buffer itself."""
        return buffer


class Int8Rows:
    """Each row as 8-bit integers times one fp32 scale, the row's largest magnitude over 127.

    A row's error is at most half a step, largest / 254 per element. What is not finite stays so: the scale carries it.
    """

    name = "int8"

    def encode(self, x_BSD: Tensor) -> Tensor:
        """The scales of all rows, then the integers."""
        x = x_BSD.float()
        buffer = self.buffer((x.shape[0], x.shape[1], x.shape[2]))
        scales, codes = self._parts(buffer, x.shape[0], x.shape[1], x.shape[2])
        if x.numel():
            low, high = torch.aminmax(x, dim=-1, keepdim=True)
            torch.maximum(high, -low, out=scales).div_(LARGEST)
            # A row of zeros has scale zero; any divisor will do for it.
            codes.copy_((x / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_())
        return buffer

    def buffer(self, shape: Shape) -> Tensor:
        """Bytes."""
        B, S, D = shape
        return torch.empty(B * S * (SCALE_BYTES + D), dtype=torch.uint8)

    def decode(self, buffer: Tensor, shape: Shape) -> Tensor:
        """(B, S, D) in fp32."""
        scales, codes = self._parts(buffer, *shape)
        return codes * scales

    @staticmethod
    def _parts(buffer: Tensor, B: int, S: int, D: int) -> tuple[Tensor, Tensor]:
        cut = B * S * SCALE_BYTES
        return buffer[:cut].view(torch.float32).view(B, S, 1), buffer[cut:].view(torch.int8).view(B, S, D)


FP32, BF16, INT8 = Cast(torch.float32), Cast(torch.bfloat16), Int8Rows()
EXACT = Cast(torch.float64)
"""For small control values (ids and logits of winners), which must not be rounded."""

_BY_NAME: dict[str, Wire] = {wire.name: wire for wire in (FP32, BF16, INT8)}


def wire_named(name: str) -> Wire:
    """The form that a plan names: fp32, bf16 or int8."""
    return _BY_NAME[name]
