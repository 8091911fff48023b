"""A share of one layer on weights without meaning: the real blocks, timed from outside and in their linears.

The blocks are those of `models/block.py` and the linears those of the route that this host picks, so that what a run
pays beside its products (splitting heads, rotating them, Python) is measured too. A tile of queries meets all keys as
it does where tokens are shared out.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from edgempi.models.block import MLP, SelfAttention
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.stream import Stream
from edgempi.models.weights import Weights
from edgempi.ops.linear import Route
from edgempi.parallel.seams import Whole
from edgempi.plan.apportion import length
from edgempi.plan.plan import PRESETS, Stage
from edgempi.plan.share import DeviceShare, Holding
from edgempi.plan.spec import ModelSpec, Stack
from edgempi.profiling.fit import Product
from edgempi.profiling.stopwatch import Stopwatch

NOISE = 2**20
"""Random elements that all weights repeat: drawing each anew would take longer than measuring."""
DEVIATION = 0.02


class TimedRoute:
    """A route whose every product is noted.

    Args:
        route: the one to time.
        watch: the clock.
    """

    def __init__(self, route: Route, watch: Stopwatch) -> None:
        self._kernel, self._watch = route.kernel, watch
        self._products: list[Product] = []
        self.route = Route(route.name, route.prepare, self._call)

    def taken(self) -> list[Product]:
        """The products since the last call of this method, in order; empty ones are not computed and not noted."""
        found, self._products = self._products, []
        return found

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        start = self._watch.now()
        y = self._kernel(x, weight, bias, activation)
        taken = self._watch.now() - start
        self._products.append(Product(x.numel() // x.shape[-1], y.shape[-1], x.shape[-1], taken))
        return y


class RandomWeights(Weights):
    """Weights of a model's shapes, made in memory."""

    def __init__(self, spec: ModelSpec, share: DeviceShare, route: Route, dtype: torch.dtype) -> None:
        # There is no checkpoint: `tensor`, which alone reads one, is replaced.
        super().__init__(cast(Checkpoint, None), family_named(spec.family), spec, share, route, dtype)
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(NOISE, generator=generator).mul_(DEVIATION).to(dtype)

    def tensor(self, name: str) -> Tensor | None:
        """Noise of the slice's shape."""
        if name not in self._held:
            return None
        return self._filled(self._held[name])

    def _filled(self, holding: Holding) -> Tensor:
        made = torch.empty(holding.shape, dtype=self.dtype)
        flat = made.view(-1)
        for start in range(0, flat.numel(), NOISE):
            part = flat[start : start + NOISE]
            part.copy_(self._noise[: part.numel()])
        return made


class Tile(Whole):
    """The last `rows` of `tokens` tokens, whose queries meet the keys of all of them.

    Args:
        rows: of the tile.
        tokens: of the pass.
        keys: (1, tokens, own key-value heads * D), which stand for those of the other tokens.
    """

    shares_keys = True

    def __init__(self, rows: int, tokens: int, keys: Tensor) -> None:
        super().__init__(tokens)
        self.inner = self.outer = (tokens - rows, tokens)
        self._keys = keys

    def share_keys(self, k_BTE: Tensor, v_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens."""
        return self._keys, self._keys


class LayerShare:
    """The blocks of the first layer of a model's last stack, at a share of its heads and columns.

    Args:
        spec: the model.
        fraction: of the heads (at least one group) and of the columns (at least one).
        tokens: of a pass.
        route: how linears keep their weights.
        dtype: of weights and activations.
    """

    def __init__(self, spec: ModelSpec, fraction: float, tokens: int, route: Route, dtype: torch.dtype) -> None:
        name = spec.last
        self.stack = stack = spec.stacks[name]
        kv_heads = max(1, round(fraction * stack.kv_heads))
        self.heads = kv_heads * stack.group
        self.columns = max(1, round(fraction * stack.mlp_columns))
        self._kv_width = kv_heads * stack.head_dim
        self._tokens, self._dtype = tokens, dtype
        unit = f"{name}.0"
        share = DeviceShare(
            device=0,
            stage=Stage(units=(unit,), devices=(0,), modes=PRESETS["single"]),
            heads={name: (0, self.heads)},
            kv_heads={name: (0, kv_heads)},
            mlp_columns={name: (0, self.columns)},
            embedding=(0, 0),
            head=(0, 0),
        )
        weights = RandomWeights(spec, share, route, dtype)
        self.attention, self.mlp = SelfAttention(weights, name, unit), MLP(weights, name, unit)
        self.norm = weights.norm(f"{unit}.attention.norm", stack)
        self._relative = weights.tensor(f"{name}.relative.weight")
        self._window = (stack.windows or (None,))[0]

    def stream(self, rows: int) -> Stream:
        """A pass in which the blocks see `rows` of all tokens."""
        seam = Whole(self._tokens)
        if rows < self._tokens:
            seam = Tile(rows, self._tokens, torch.randn(1, self._tokens, self._kv_width).to(self._dtype))
        return Stream(
            stack=self.stack,
            ids=torch.zeros(1, self._tokens, dtype=torch.long),
            offset=0,
            padding=None,
            types=None,
            dtype=self._dtype,
            embedding_seam=seam,
            attention_seam=seam,
            mlp_seam=seam,
            relative_table=self._relative,
        )

    def attended(self, stream: Stream) -> tuple[float, bool]:
        """The core's work, H q t D, and whether it is left to the kernel to leave out what is causally hidden."""
        span = stream.attention_seam.inner
        pairs = length(span) * stream.reach(span)
        return float(self.heads * self.stack.head_dim * pairs), stream.mask(self._window, span).causal


def layer_elements(stack: Stack, fraction: float = 1.0) -> int:
    """Weights of a share of one layer's linears, near enough to plan memory with."""
    attention = 2 * (stack.heads + stack.kv_heads) * stack.head_dim
    return round(fraction * stack.width * (attention + (3 if stack.gated else 2) * stack.mlp_columns))
