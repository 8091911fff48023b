"""Positions and the token that a head reads, as the families count them."""

from __future__ import annotations

import torch

from edgempi.models.ends import selected
from edgempi.models.stream import position_ids
from edgempi.plan.spec import Embedding

PAD = 3
IDS = torch.tensor([[5, 6, 7, 8], [9, 5, PAD, PAD], [PAD, 5, 9, PAD]])


def _embedding(rule: str, offset: int = 0) -> Embedding:
    return Embedding(vocabulary=10, width=4, positions=20, position_rule=rule, position_offset=offset)


def test_by_index() -> None:
    assert position_ids(_embedding("index", 2), IDS, 3, None, PAD).tolist() == [[5, 6, 7, 8]] * 3


def test_opt_counts_unmasked_tokens() -> None:
    got = position_ids(_embedding("mask", 2), IDS, 0, IDS != PAD, PAD)
    assert got.tolist() == [[2, 3, 4, 5], [2, 3, 1, 1], [1, 2, 3, 1]]


def test_opt_goes_on_where_the_cache_ends() -> None:
    padding = torch.tensor([[True, True, True], [False, True, True]])
    assert position_ids(_embedding("mask", 2), IDS[:2, :1], 2, padding, PAD).tolist() == [[4], [3]]


def test_roberta_counts_tokens_that_are_not_padding() -> None:
    got = position_ids(_embedding("token", PAD), IDS, 0, None, PAD)
    assert got.tolist() == [[4, 5, 6, 7], [4, 5, 3, 3], [3, 4, 5, 3]]


def test_the_token_that_a_head_reads() -> None:
    assert selected("all", IDS, PAD) is None
    assert selected("first", IDS, PAD).tolist() == [0, 0, 0]
    assert selected("last", IDS, PAD).tolist() == [3, 1, 2]
    assert selected("last", IDS, None).tolist() == [3, 3, 3]
