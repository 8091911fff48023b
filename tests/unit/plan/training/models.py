"""T5 in any size."""

from __future__ import annotations

from edgempi.plan.spec import Embedding, Head, ModelSpec, Relative, Stack


def t5(layers: int, width: int, heads: int, columns: int) -> ModelSpec:
    """T5: 64 per head, no biases, relative positions, one table for all."""

    def stack(decodes: bool) -> Stack:
        return Stack(
            layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=64, mlp_columns=columns,
            activation="relu", embedding=Embedding(32128, width, shared=decodes), norm="rms", final_norm=True,
            causal=decodes, cross=decodes, qkv_bias=False, out_bias=False, mlp_bias=False,
            relative=Relative(32, 128, not decodes),
        )  # fmt: skip

    head = Head(rows=32128, vocabulary=True, tied=True)
    return ModelSpec("t5", stack(False), stack(True), head, None, start_token=0, pad_token=0)
