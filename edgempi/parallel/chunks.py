"""One long prompt as chunks that stream through causal pipeline stages: chunk i is in a stage while i + 1 is before it.

Under a causal mask no token sees a later one, so a stage can work on a chunk as soon as it holds the keys and values of
the chunks before. Each stage keeps them, as it does for decoding. Source: TeraPipe (arXiv 2102.07988).

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

from torch import Tensor

from edgempi.models.stream import Seam
from edgempi.plan.apportion import Span


class Picked:
    """The one token of each row that a head is asked for, while chunks bring them by.

    Args:
        index_B: which token of each row, counted in the whole pass.
    """

    def __init__(self, index_B: Tensor) -> None:
        self._index_B = index_B
        self._x_B1D: Tensor | None = None

    def take(self, x_BSD: Tensor, seam: Seam, chunk: Span) -> None:
        """Take what this chunk holds; every device of the stage must call, with its part of the stream."""
        start, stop = chunk
        here = ((self._index_B >= start) & (self._index_B < stop)).nonzero()[:, 0]
        if not len(here):  # no device has anything to hand out
            return
        found = seam.pick(x_BSD[here], self._index_B[here] - start)
        if self._x_B1D is None:
            self._x_B1D = found.new_zeros(len(self._index_B), 1, found.shape[-1])
        self._x_B1D[here] = found

    def whole(self, x_BSD: Tensor) -> Tensor:
        """All rows' tokens (B, 1, D) once every chunk has passed; `x_BSD` is for the case that there is no row."""
        if self._x_B1D is None:
            return x_BSD.new_zeros(len(self._index_B), 1, x_BSD.shape[-1])
        return self._x_B1D
