"""The key-value cache of one pass after another: plain contiguous buffers, sized once.

Shapes: B rows, G key-value heads of this device, T tokens, D head size.
"""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Keys and values of one layer; allocated at the first append, when rows, heads and dtype are known.

    Args:
        capacity: the most tokens it will hold.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.length = 0
        self.cross: tuple[Tensor, Tensor] | None = None
        """Keys and values of the encoder's output, computed once (B, G, T, D)."""

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Add S tokens; returns all keys and values so far as views (B, G, T, D)."""
        if self._keys is None or self._values is None:
            B, G, _, D = k_BGSD.shape
            self._keys = k_BGSD.new_empty(B, G, self._capacity, D)
            self._values = v_BGSD.new_empty(B, G, self._capacity, D)
        start, self.length = self.length, self.length + k_BGSD.shape[2]
        self._keys[:, :, start : self.length] = k_BGSD
        self._values[:, :, start : self.length] = v_BGSD
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


class KVCache:
    """The caches of the layers that a device runs, by unit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        """Tokens of the decoder that have passed."""
        self._layers: dict[str, LayerCache] = {}

    def layer(self, unit: str) -> LayerCache:
        """The cache of one layer."""
        return self._layers.setdefault(unit, LayerCache(self.capacity))
