"""Operations by technique: published figures, counts by hand, and what must hold for any model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.plan.spec import Embedding, Head, ModelSpec, Stack
from edgempi.plan.training.flops import sample_flops, unit_flops, update_flops
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload
from unit.plan.specs import SPECS
from unit.plan.training.models import t5

WORK = Workload(tokens=1, memory_tokens=128)
BASE, LARGE = t5(12, 768, 12, 3072), t5(24, 1024, 16, 4096)
BART = replace(t5(12, 1024, 16, 4096), head=replace(BASE.head, rows=50265))
SIDE = Tuning(Technique.parallel_adapter)


@pytest.mark.parametrize(("spec", "tera"), [(BASE, 0.42), (BART, 0.74), (LARGE, 1.48)], ids=["base", "bart", "large"])
def test_published_shares_of_the_forward_pass(spec: ModelSpec, tera: float) -> None:
    forward = sample_flops(spec, Tuning(Technique.full), WORK).forward
    assert 16 * forward / 1e12 == pytest.approx(tera, abs=0.005)
    both = {t: sample_flops(spec, Tuning(t), WORK).both / forward for t in Technique}
    assert both[Technique.full] == 3
    assert both[Technique.lora] == pytest.approx(2.0, rel=0.03)
    assert both[Technique.adapter] == pytest.approx(2.0, rel=0.03)
    assert both[Technique.parallel_adapter] == pytest.approx(1.08, abs=0.015)
    assert sample_flops(spec, SIDE, WORK, cached=True).both / forward == pytest.approx(0.08, abs=0.015)


def _decoder(**more: object) -> ModelSpec:
    """One layer, 8 wide, 2 heads of 4, 32 columns."""
    fields = {
        "layers": 1, "width": 8, "heads": 2, "kv_heads": 2, "head_dim": 4, "mlp_columns": 32, "activation": "gelu",
        "embedding": Embedding(10, 8), "causal": True, **more,
    }  # fmt: skip
    return ModelSpec("gpt2", None, Stack(**fields), Head(rows=10, vocabulary=True), None)


def test_one_layer_by_hand() -> None:
    S = 3
    found = unit_flops(_decoder(), Tuning(Technique.full), Workload(tokens=S))
    linears = 2 * S * (4 * 8 * 8 + 2 * 8 * 32)
    core = 4 * (1 + 2 + 3) * 8  # the keys up to each query
    assert found["dec.0"].forward == linears + core
    assert found["dec.0"].backward == 2 * (linears + core)
    assert found["head"].forward == 2 * S * 8 * 10
    assert found["dec.embed"].both == 0


def test_what_lora_goes_back_through() -> None:
    S, k = 3, 4
    found = unit_flops(_decoder(), Tuning(Technique.lora, rank=k), Workload(tokens=S))
    once = 2 * S * 8
    core = 4 * 6 * 8
    assert found["dec.0"].forward == 4 * once * 8 + 2 * once * 32 + core + 2 * 2 * once * k
    # Nothing is trained before the first layer: no gradient for its input, so none through q, k and v, nor through
    # the factors' input; through what follows, for inputs alone.
    assert found["dec.0"].backward == once * 8 + 2 * once * 32 + 2 * core + 2 * (once * k + 2 * once * k)
    assert found["head"].backward == found["head"].forward


def test_windows_and_narrow_tables() -> None:
    windowed = unit_flops(_decoder(windows=(2,)), Tuning(Technique.full), Workload(tokens=5))
    whole = unit_flops(_decoder(), Tuning(Technique.full), Workload(tokens=5))
    assert whole["dec.0"].forward - windowed["dec.0"].forward == 4 * 8 * (15 - 9)
    table = unit_flops(_decoder(embedding=Embedding(10, 6)), Tuning(Technique.full), Workload(tokens=5))
    assert table["dec.embed"].forward == 2 * 5 * 6 * 8


def test_downsamplers() -> None:
    dense = sample_flops(LARGE, SIDE, WORK, cached=True)
    ranked = sample_flops(LARGE, replace(SIDE, down_rank=16), WORK, cached=True)
    fixed = sample_flops(LARGE, replace(SIDE, down_rank=0), WORK, cached=True)
    # 25 of 128 tokens (the embedding's too) and 25 of one: a product for the weight's gradient is spared.
    assert dense.forward == fixed.forward
    assert dense.backward - fixed.backward == 2 * 25 * 129 * 1024 * 128
    # Of rank 16: two products forward, back one for the first and two for the second.
    assert ranked.both - fixed.both == 2 * 25 * 129 * (16 * (2 * 1024 + 3 * 128) - 1024 * 128)


def test_updates() -> None:
    assert update_flops(LARGE, Tuning(Technique.lora), "sgd") == 2 * 9_437_184
    assert update_flops(LARGE, Tuning(Technique.lora)) == 14 * 9_437_184


@settings(deadline=None, max_examples=60)
@given(SPECS, st.sampled_from([t for t in Technique if t is not Technique.parallel_adapter]))
def test_full_has_most_and_nobody_less_than_the_forward_pass(spec: ModelSpec, technique: Technique) -> None:
    work = Workload(tokens=5, memory_tokens=7)
    full = sample_flops(spec, Tuning(Technique.full), work)
    found = sample_flops(spec, Tuning(technique), work)
    assert full.backward == 2 * full.forward
    assert found.forward >= full.forward
    assert found.backward <= full.backward + 2 * (found.forward - full.forward)
