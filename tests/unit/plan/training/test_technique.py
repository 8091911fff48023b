"""Counts that papers state, from transformers' own configurations; and what a side network is."""

from __future__ import annotations

import pytest

from edgempi.errors import UserError
from edgempi.models.families import family_named
from edgempi.plan.spec import ModelSpec, Rotary
from edgempi.plan.training.technique import Technique, Tuning, side_spec, trained_elements, trained_shapes
from unit.plan.specs import decoder

SIZES = {"base": (768, 3072, 12, 12), "large": (1024, 4096, 24, 16)}


def _t5(size: str) -> ModelSpec:
    from transformers import T5Config

    width, columns, layers, heads = SIZES[size]
    config = T5Config(
        d_model=width,
        d_ff=columns,
        num_layers=layers,
        num_heads=heads,
        decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )
    return family_named("t5").spec(config, ())


@pytest.mark.parametrize(
    ("size", "tuning", "millions"),
    [
        ("base", Tuning(Technique.parallel_adapter), 5.10),
        ("large", Tuning(Technique.parallel_adapter), 17.72),
        ("large", Tuning(Technique.lora), 9.44),
        ("large", Tuning(Technique.adapter), 12.69),
    ],
)
def test_published_counts(size: str, tuning: Tuning, millions: float) -> None:
    assert trained_elements(_t5(size), tuning) / 1e6 == pytest.approx(millions, abs=0.005)


TURNED = decoder(columns=12, rotary=Rotary((1.0, 0.5), 1.25))


def test_side_heads_are_narrow() -> None:
    side = side_spec(TURNED, 2).dec
    assert side is not None and side.rotary is not None
    assert (side.width, side.head_dim, side.heads) == (6, 2, 6)
    assert (side.rotary.frequencies, side.rotary.scale) == ((1.0,), 1.25)
    assert side.attention_scales == pytest.approx([0.5 * 2**0.5] * 3)
    large = side_spec(_t5("large"), 8).dec
    assert large is not None and large.attention_scales == (1.0,) * 24


def test_a_reduction_that_splits_a_pair_is_refused() -> None:
    with pytest.raises(UserError, match="rotary pairs of a layer, 2"):
        side_spec(TURNED, 4)


def test_fixed_downsamplers_have_no_parameters() -> None:
    names = trained_shapes(decoder(columns=12), "dec.1", Tuning(Technique.parallel_adapter, reduction=2, down_rank=0))
    assert not [name for name in names if name.startswith("side.dec.1.down")]
    low = trained_shapes(decoder(columns=12), "dec.1", Tuning(Technique.parallel_adapter, reduction=2, down_rank=3))
    assert (low["side.dec.1.down.a"], low["side.dec.1.down.b"], low["side.dec.1.down.bias"]) == ((3, 12), (6, 3), (6,))
