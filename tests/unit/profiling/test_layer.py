"""The measured layer is the real one: its products and its attention are those that plans count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgempi.models.parts import Parts
from edgempi.ops.linear import PLAIN
from edgempi.plan.spec import Head, ModelSpec
from edgempi.profiling.compute import SHARES, measure_compute, shares_that_fit
from edgempi.profiling.layer import LayerShare, TimedRoute, layer_elements
from edgempi.profiling.stopwatch import Stopwatch
from unit.plan.specs import classifier, decoder, rich, stack

TOKENS = 16
RELATIVE = replace(rich(), dec=None, head=Head(select="first"))
SPECS = {"classifier": classifier(), "decoder": decoder(), "rich": rich(), "relative": RELATIVE}


def _timed() -> TimedRoute:
    return TimedRoute(PLAIN, Stopwatch(1))


@pytest.mark.parametrize("rows", [1, 5, TOKENS])
@pytest.mark.parametrize("fraction", SHARES)
@pytest.mark.parametrize("name", SPECS)
def test_products_are_those_of_the_share(name: str, fraction: float, rows: int) -> None:
    spec = SPECS[name]
    timed = _timed()
    layer = LayerShare(spec, fraction, TOKENS, timed.route, torch.float32)
    shape = spec.stacks[spec.last]
    x, stream = torch.randn(1, rows, shape.width), layer.stream(rows)
    with torch.inference_mode():
        y = layer.attention(Parts.of(x), stream, None).whole()
        assert layer.norm(layer.mlp(Parts.of(layer.norm(x + y)), stream).whole()).isfinite().all()
    found = [(p.rows, p.outputs, p.inputs) for p in timed.taken()]
    own, columns = layer.heads * shape.head_dim, layer.columns
    kv = own // shape.group
    ups = columns * (2 if shape.gated else 1)
    assert found == [
        (rows, own + 2 * kv, shape.width), (rows, shape.width, own), (rows, ups, shape.width),
        (rows, shape.width, columns),
    ]  # fmt: skip
    assert not timed.taken()
    assert layer.heads % shape.group == 0
    if fraction == 1:
        assert (layer.heads, columns) == (shape.heads, shape.mlp_columns)
        assert sum(n * k for _, n, k in found) == layer_elements(shape)


@pytest.mark.parametrize(
    ("spec", "rows", "causal"),
    [(classifier(), TOKENS, False), (classifier(), 4, False), (decoder(), TOKENS, True), (decoder(), 4, False)],
)
def test_attention_counts_what_is_attended(spec: ModelSpec, rows: int, causal: bool) -> None:
    layer = LayerShare(spec, 0.5, TOKENS, PLAIN, torch.float32)
    assert layer.attended(layer.stream(rows)) == (layer.heads * 4 * rows * TOKENS, causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_a_device_is_measured(name: str, dtype: torch.dtype) -> None:
    over: list[float] = []
    found = measure_compute(SPECS[name], dtype, TOKENS, 0.02, 1e6, over.append)
    times = found.times
    assert times.linear.seconds(TOKENS, 64, 64) > 0
    assert times.attention.seconds(1000) > 0
    assert times.connective.seconds(1000) > 0
    assert sorted(times.wire) == ["bf16", "fp32", "int8"]
    assert all(taken.seconds(1000) > 0 for taken in times.wire.values())
    assert len(over) == found.rounds >= 1
    assert [b.share for b in found.blocks if b.block == "mlp"] == list(SHARES)
    assert [b.share for b in found.blocks if b.block == "attention"] == list(SHARES)
    assert [b.share for b in found.blocks if b.block == "connective"] == [2 / 16, 4 / 16, 8 / 16, 1]
    assert all(block.measured_s > 0 and block.fitted_s > 0 for block in found.blocks)


def test_shares_are_those_that_memory_allows() -> None:
    spec = classifier()
    one = layer_elements(stack(norm_first=False)) * 4
    assert shares_that_fit(spec, 4, 2.6 * one) == SHARES
    assert shares_that_fit(spec, 4, 1.6 * one) == SHARES[:3]
    assert shares_that_fit(spec, 2, 0.8 * one) == SHARES[:3]
    assert shares_that_fit(spec, 4, 0) == SHARES[:1]
