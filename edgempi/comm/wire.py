"""The forms in which tensors travel: rounded to a floating-point dtype, or int8 with scales for groups of columns.

A form turns a tensor into one contiguous buffer and back; sums are always taken on what comes out of `decode`.
Shapes: B batch rows, S tokens, D columns; a "row" of int8 is one token of one batch row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edgempi.plan.messages import SCALE_BYTES, int8_groups, tile_bytes

Shape = tuple[int, int, int]
"""(rows, tokens, columns) of a tile."""

LARGEST = 127


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
    """Each row as 8-bit integers, with a bf16 scale for every group of columns: the group's largest magnitude over 127.

    Group j of a row of D columns in n groups holds the columns j, j + n, j + 2n ..., so that every step works on whole
    vectors. An element errs by at most half a step, or by the rounding of the scale where it is the largest. What is
    not finite stays so: the scale carries it.
    """

    name = "int8"

    def encode(self, x_BSD: Tensor) -> Tensor:
        """The scales of all rows, then the integers."""
        x = x_BSD.float()
        B, S, D = x.shape
        buffer = self.buffer((B, S, D))
        if not x.numel():
            return buffer
        scales, codes = self._parts(buffer, (B, S, D))
        x = x.reshape(codes.shape)
        scales.copy_(x.abs().amax(dim=1, keepdim=True).div_(LARGEST))
        # A group of zeros has scale zero; any divisor will do for it.
        factors = scales.float().clamp_min_(torch.finfo(torch.float32).tiny).reciprocal_()
        codes.copy_(torch.mul(x, factors).round_().clamp_(-LARGEST, LARGEST))
        return buffer

    def buffer(self, shape: Shape) -> Tensor:
        """Bytes."""
        B, S, D = shape
        return torch.empty(tile_bytes("int8", B * S, D), dtype=torch.uint8)

    def decode(self, buffer: Tensor, shape: Shape) -> Tensor:
        """(B, S, D) in fp32."""
        if 0 in shape:
            return torch.empty(shape)
        scales, codes = self._parts(buffer, shape)
        return torch.mul(codes, scales.float()).view(shape)

    @staticmethod
    def _parts(buffer: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Scales (B S, 1, groups) and integers (B S, columns of a group, groups), as views."""
        B, S, D = shape
        groups = int8_groups(D)
        cut = B * S * groups * SCALE_BYTES
        scales = buffer[:cut].view(torch.bfloat16).view(B * S, 1, groups)
        return scales, buffer[cut:].view(torch.int8).view(B * S, D // groups, groups)


FP32, BF16, INT8 = Cast(torch.float32), Cast(torch.bfloat16), Int8Rows()
EXACT = Cast(torch.float64)
"""For small control values (ids and logits of winners), which must not be rounded."""

_BY_NAME: dict[str, Wire] = {wire.name: wire for wire in (FP32, BF16, INT8)}


def wire_named(name: str) -> Wire:
    """The form that a plan names: fp32, bf16 or int8."""
    return _BY_NAME[name]
