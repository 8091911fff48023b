"""The two ends of a model: from token ids to the first residual stream, and from the last one to what is asked for.

Shapes: B rows, S tokens, V own rows of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.models.stream import Seam, Stream, position_ids
from edgempi.models.weights import Weights
from edgempi.ops.activation import activation_named
from edgempi.plan.plan import Table


class Embed:
    """The embedding unit of a stack: token, position and type tables, a projection and a norm where it has them."""

    def __init__(self, weights: Weights, stack: str) -> None:
        self._spec = weights.spec.stacks[stack].embedding
        self._pad = weights.spec.pad_token
        self._split = weights.share.stage.modes.embedding == Table.vocabulary
        self._start = weights.share.embedding[0]
        self._table = weights.table(stack)
        name = f"{stack}.embed"
        self._positions = weights.tensor(f"{name}.positions.weight")
        self._types = weights.tensor(f"{name}.types.weight")
        self._project = weights.tensor(f"{name}.project.weight")
        # Norms of embeddings are LayerNorms in every family that has them.
        self._norm = weights.norm(f"{name}.norm", weights.spec.stacks[stack]) if self._spec.norm else None

    def __call__(self, stream: Stream) -> Tensor:
        """The device's part of the first residual stream."""
        seam = stream.embedding_seam
        own = slice(*seam.outer)
        if self._split:
            x = seam.sum(self._partial(stream.ids))
        else:
            x = F.embedding(stream.ids[:, own], self._table)
        if self._spec.scale != 1.0:
            x = x * self._spec.scale
        if self._project is not None:
            x = F.linear(x, self._project)
        if self._types is not None:
            types = torch.zeros_like(stream.ids) if stream.types is None else stream.types
            x = x + F.embedding(types[:, own], self._types)
        if self._positions is not None:
            positions = position_ids(self._spec, stream.ids, stream.offset, stream.padding, self._pad)
            x = x + F.embedding(positions[:, own], self._positions)
        return x if self._norm is None else self._norm(x)

    def _partial(self, ids: Tensor) -> Tensor:
        """This device's addend: the tokens whose rows it owns, zero for all others."""
        local = ids - self._start
        owned = (local >= 0) & (local < len(self._table))
        x = self._table.new_zeros(*ids.shape, self._table.shape[1])
        x[owned] = self._table[local[owned]]
        return x


class Head:
    """The head unit: hidden states, or logits over the vocabulary or labels."""

    def __init__(self, weights: Weights) -> None:
        spec = weights.spec
        self._spec = spec.head
        stack = spec.stacks[spec.last]
        self._split = weights.share.stage.modes.head == Table.vocabulary and spec.head.vocabulary
        self._dense = weights.linear("head.dense") if spec.head.dense else None
        self._activation = activation_named(spec.head.dense_activation)
        self._norm = weights.norm("head.norm", stack) if spec.head.dense_norm else None
        self._project = weights.tensor("head.project.weight")
        self._out = weights.head() if spec.head.rows else None

    def __call__(self, x: Tensor, seam: Seam, index_B: Tensor | None) -> dict[str, Tensor]:
        """What the model gives, by the name transformers uses.

        Args:
            x: the device's part of the last residual stream.
            seam: of the head.
            index_B: the token of each row that is asked for; None: all tokens.

        Returns:
            `logits` (B, S or 1, own columns), or `last_hidden_state` and `pooler_output`.
        """
        outputs = {}
        if not self._spec.rows:
            hidden = x if self._project is None else F.linear(x, self._project)
            outputs["last_hidden_state"] = hidden
            if self._dense is None:
                return outputs
        if index_B is not None:
            x = seam.pick(x, index_B)
        if self._dense is not None:
            x = self._dense(x, self._activation)
        if self._norm is not None:
            x = self._norm(x)
        if self._out is None:
            return {**outputs, "pooler_output": x}
        if self._project is not None:
            x = F.linear(x, self._project)
        if self._spec.scale != 1.0:
            x = x * self._spec.scale
        if self._split and index_B is None:
            x = seam.gather(x)
        return {"logits": self._out(x)}


def selected(select: str, ids: Tensor, pad: int | None) -> Tensor | None:
    """The token of each row (B) that a head reads; None where it reads all."""
    if select == "all":
        return None
    if select == "first" or pad is None:
        return torch.full((len(ids),), 0 if select == "first" else ids.shape[1] - 1)
    real = (ids != pad) * torch.arange(1, ids.shape[1] + 1)
    return (real.argmax(dim=1)).long()
