"""Attention and its masks, beside the plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.kernels.attention import reference
from edgempi.ops.attention import Mask, attention, build_mask

B, S, T, D = 2, 5, 7, 8
SCALE = D**-0.5


def _qkv(heads: int, groups: int, queries: int = S, keys: int = T) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(heads)
    shapes = ((B, heads, queries, D), (B, groups, keys, D), (B, groups, keys, D))
    return tuple(2 * torch.randn(shape, generator=generator) for shape in shapes)


def _expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return reference.attention(q, k, v, SCALE, mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 3), (6, 1), (1, 1)])
def test_grouped_queries(heads: int, groups: int) -> None:
    q, k, v = _qkv(heads, groups)
    mask = torch.rand(B, heads, S, T, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[..., 0] = True
    torch.testing.assert_close(attention(q, k, v, SCALE, Mask(mask)), _expected(q, k, v, mask))
    torch.testing.assert_close(attention(q, k, v, SCALE, Mask()), _expected(q, k, v, None))


def test_rows_that_see_nothing_give_zeros() -> None:
    q, k, v = _qkv(4, 2)
    mask = torch.ones(B, 1, S, T, dtype=torch.bool)
    mask[1, :, 2] = False
    got = attention(q, k, v, SCALE, Mask(mask))
    assert not got[1, 2].any()
    assert got[0].all() and torch.isfinite(got).all()
    torch.testing.assert_close(got, _expected(q, k, v, mask))


@pytest.mark.parametrize("shape", [(0, 4, S, D), (B, 0, S, D), (B, 4, 0, D)])
def test_empty_shares(shape: tuple[int, ...]) -> None:
    kv = torch.zeros(shape[0], shape[1], T, D)
    assert attention(torch.zeros(shape), kv, kv, SCALE, Mask()).shape == (shape[0], shape[2], shape[1] * D)


def test_a_causal_mask_and_its_tensor_say_the_same() -> None:
    q, k, v = _qkv(4, 2, 6, 6)
    short = build_mask(torch.arange(6), torch.arange(6), True, None, None, None)
    assert short == Mask(causal=True)
    spelt = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(attention(q, k, v, SCALE, short), _expected(q, k, v, spelt))


@settings(deadline=None)
@given(
    st.integers(0, 6), st.integers(0, 4), st.booleans(), st.one_of(st.none(), st.integers(1, 9)), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_masks(first: int, queries: int, causal: bool, window: int | None, padded: bool, biased: bool) -> None:
    """What a query sees, key by key: the definition, spelt out."""
    keys = first + queries
    generator = torch.Generator().manual_seed(keys)
    padding = torch.rand(B, keys, generator=generator) > 0.3 if padded else None
    bias = torch.randn(1, 3, queries, keys, generator=generator) if biased else None
    mask = build_mask(torch.arange(first, keys), torch.arange(keys), causal, window if causal else None, padding, bias)
    scores = torch.zeros(B, 3, queries, keys)
    if mask.causal:
        assert mask.tensor is None
        scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(), -torch.inf)
    elif mask.tensor is not None and mask.tensor.dtype == torch.bool:
        scores = scores.masked_fill(~mask.tensor, -torch.inf)
    elif mask.tensor is not None:
        scores = scores + mask.tensor
    for row in range(B):
        for query in range(queries):
            for key in range(keys):
                back = first + query - key
                seen = not causal or (back >= 0 and (window is None or back < window))
                seen = seen and (padding is None or bool(padding[row, key]))
                expected = (0.0 if bias is None else bias[0, :, query, key]) if seen else None
                got = scores[row, :, query, key]
                assert (got < -1e30).all() if expected is None else torch.equal(got, torch.zeros(3) + expected)
