"""The one Transformer layer, for every family and every way of sharing.

It is told its own heads and columns and meets communication at its stream's seams only; it never asks which rank it is.

Shapes: B rows, S tokens inside the block, T keys, H and G own query and key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgempi.models.kv_cache import LayerCache
from edgempi.models.parts import Parts
from edgempi.models.stream import Stream
from edgempi.models.weights import Weights
from edgempi.ops.activation import activate, activation_named
from edgempi.ops.attention import attention
from edgempi.ops.linear import Poll
from edgempi.ops.norm import Norm
from edgempi.ops.rotary import rotate
from edgempi.plan.apportion import Span, length


class Block:
    """Self-attention, cross-attention where the stack has it, and an MLP, each joined by a connective block.

    Args:
        weights: loads what the layer is made of.
        stack: `enc` or `dec`.
        unit: the layer's name, `dec.3`.
    """

    def __init__(self, weights: Weights, stack: str, unit: str) -> None:
        spec = weights.spec.stacks[stack]
        self._norm_first = spec.norm_first
        self._attention = SelfAttention(weights, stack, unit)
        self._cross = CrossAttention(weights, stack, unit) if spec.cross else None
        self._mlp = MLP(weights, stack, unit)
        self._attention_norm = weights.norm(f"{unit}.attention.norm", spec)
        self._cross_norm = weights.norm(f"{unit}.cross.norm", spec) if spec.cross else None
        self._mlp_norm = weights.norm(f"{unit}.mlp.norm", spec)

    def __call__(self, x: Parts, stream: Stream, cache: LayerCache | None = None) -> Parts:
        """The layer: the device's part of the residual stream in, and out, its last tiles maybe still to come."""
        x = self._connect(x, self._attention_norm, lambda h: self._attention(h, stream, cache))
        if self._cross is not None and self._cross_norm is not None:
            cross = self._cross
            x = self._connect(x, self._cross_norm, lambda h: Parts.of(cross(h.whole(), stream, cache)))
        return self._connect(x, self._mlp_norm, lambda h: self._mlp(h, stream))

    def _connect(self, x: Parts, norm: Norm, sublayer: Callable[[Parts], Parts]) -> Parts:
        """The connective block: residual add and norm, on the device's own part of the stream."""
        if self._norm_first:
            return x.plus(sublayer(x.map(norm)))
        return x.plus(sublayer(x)).map(norm)


class SelfAttention:
    """Attention over the own heads; Q, K and V are one linear."""

    def __init__(self, weights: Weights, stack: str, unit: str) -> None:
        spec, share = weights.spec.stacks[stack], weights.share
        layer = int(unit.rpartition(".")[2])
        name = f"{unit}.attention"
        self._size = spec.head_dim
        self._heads, self._kv_heads = length(share.heads[stack]), length(share.kv_heads[stack])
        self._scale, self._window = spec.attention_scales[layer], (spec.windows or (None,) * spec.layers)[layer]
        self._rotary = spec.rotary is not None
        self._qkv = weights.linear(f"{name}.q", f"{name}.k", f"{name}.v")
        self._out = weights.linear(f"{name}.out")
        self._q_norm = weights.norm(f"{name}.q_norm", spec, self._size) if spec.qk_norm else None
        self._k_norm = weights.norm(f"{name}.k_norm", spec, self._size) if spec.qk_norm else None

    def __call__(self, x: Parts, stream: Stream, cache: LayerCache | None) -> Parts:
        seam = stream.attention_seam
        rows = _Projected(seam.inner)
        past: list[tuple[Tensor, Tensor]] = []

        def project(tokens: Tensor, span: Span, between: Poll) -> None:
            rows.put(span, self._project(tokens, stream, span, between))

        def keys(reach: int) -> tuple[Tensor, Tensor]:
            if seam.shares_keys or cache is not None:  # all at once, the first time that any are wanted
                if not past:
                    k, v = seam.share_keys(rows.k.flatten(2), rows.v.flatten(2))
                    k, v = _heads(k, self._kv_heads, self._size), _heads(v, self._kv_heads, self._size)
                    past.append((k, v) if cache is None else cache.append(k, v))
                k, v = past[0]
                return k[:, :, : stream.offset + reach], v[:, :, : stream.offset + reach]
            return rows.k[:, :reach].transpose(1, 2), rows.v[:, :reach].transpose(1, 2)

        def core(span: Span) -> Tensor:
            k, v = keys(stream.reach(span))
            return attention(rows.q_of(span).transpose(1, 2), k, v, self._scale, stream.mask(self._window, span))

        # A cache takes the keys of a pass in one piece.
        reach = stream.reach if cache is None else (lambda span: stream.tokens)
        return seam.attend(x, project, reach, core, self._out)

    def _project(self, x: Tensor, stream: Stream, span: Span, between: Poll) -> tuple[Tensor, Tensor, Tensor]:
        """Q (B, S, H, D), K and V (B, S, G, D) of a span's tokens."""
        y = self._qkv(x, between=between)
        B, S, _ = y.shape
        H, G, D = self._heads, self._kv_heads, self._size
        q, k, v = y.split((H * D, G * D, G * D), dim=-1)
        q, k, v = q.view(B, S, H, D), k.view(B, S, G, D), v.view(B, S, G, D)
        if self._q_norm and self._k_norm:
            q, k = self._q_norm(q), self._k_norm(k)
        if self._rotary:
            q, k = rotate(q, stream.rotary(span)), rotate(k, stream.rotary(span))
        return q, k, v


class _Projected:
    """Q, K and V (B, S, heads, D) of a pass, put in whole or tile by tile.

    Args:
        inner: the tokens that the device works on inside the block.
    """

    def __init__(self, inner: Span) -> None:
        self._inner = inner
        self._qkv: tuple[Tensor, ...] = ()

    @property
    def k(self) -> Tensor:
        return self._qkv[1]

    @property
    def v(self) -> Tensor:
        return self._qkv[2]

    def q_of(self, span: Span) -> Tensor:
        return self._qkv[0][:, self._at(span)]

    def put(self, span: Span, qkv: tuple[Tensor, ...]) -> None:
        if span == self._inner:  # nothing to put together
            self._qkv = qkv
            return
        if not self._qkv:
            self._qkv = tuple(one.new_empty(one.shape[0], length(self._inner), *one.shape[2:]) for one in qkv)
        for whole, part in zip(self._qkv, qkv, strict=True):
            whole[:, self._at(span)] = part

    def _at(self, span: Span) -> slice:
        return slice(span[0] - self._inner[0], span[1] - self._inner[0])


class CrossAttention:
    """Attention over the encoder's output, whose keys and values are computed once per sequence."""

    def __init__(self, weights: Weights, stack: str, unit: str) -> None:
        spec, share = weights.spec.stacks[stack], weights.share
        name = f"{unit}.cross"
        self._size = spec.head_dim
        self._heads, self._kv_heads = length(share.heads[stack]), length(share.kv_heads[stack])
        self._scale = spec.attention_scales[int(unit.rpartition(".")[2])]
        self._q = weights.linear(f"{name}.q")
        self._kv = weights.linear(f"{name}.k", f"{name}.v")
        self._out = weights.linear(f"{name}.out")

    def __call__(self, x: Tensor, stream: Stream, cache: LayerCache | None) -> Tensor:
        seam = stream.attention_seam
        y = seam.enter(x, self._q)
        q = _heads(y, self._heads, self._size)
        if cache is not None and cache.cross is not None:
            k, v = cache.cross
        else:
            k, v = self._keys(stream)
            if cache is not None:
                cache.cross = (k, v)
        return seam.leave(attention(q, k, v, self._scale, stream.cross_mask), self._out)

    def _keys(self, stream: Stream) -> tuple[Tensor, Tensor]:
        memory = stream.memory
        assert memory is not None, "the first pass of a sequence brings the encoder's output"
        k, v = memory.seam.share_keys(*self._kv(memory.x).chunk(2, dim=-1))
        return _heads(k, self._kv_heads, self._size), _heads(v, self._kv_heads, self._size)


class MLP:
    """The feed-forward block over the own columns; gate and up are one linear."""

    def __init__(self, weights: Weights, stack: str, unit: str) -> None:
        spec = weights.spec.stacks[stack]
        name = f"{unit}.mlp"
        self._gated = spec.gated
        self._activation = activation_named(spec.activation)
        stems = (f"{name}.gate", f"{name}.up") if spec.gated else (f"{name}.up",)
        self._up = weights.linear(*stems)
        self._down = weights.linear(f"{name}.down")

    def __call__(self, x: Parts, stream: Stream) -> Parts:
        return stream.mlp_seam.through(x, self._inside, self._down)

    def _inside(self, x: Tensor, between: Poll) -> Tensor:
        if not self._gated:
            return self._up(x, self._activation, between)
        gate, up = self._up(x, between=between).chunk(2, dim=-1)
        return activate(self._activation, gate) * up


def _heads(x_BTE: Tensor, heads: int, size: int) -> Tensor:
    """(B, T, heads * D) as (B, heads, T, D)."""
    return x_BTE.view(*x_BTE.shape[:2], heads, size).transpose(1, 2)
