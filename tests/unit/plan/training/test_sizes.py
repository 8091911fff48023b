"""Counts that are known: parameters of T5 by technique, bytes of boundaries and caches, what stages keep."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.errors import UserError
from edgempi.plan.memory import RUNTIME_BYTES
from edgempi.plan.share import inventory
from edgempi.plan.spec import Head, ModelSpec
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.memory import memory_line, stage_memory
from edgempi.plan.training.sizes import LayerBytes, layer_bytes, pieces
from edgempi.plan.training.technique import Technique, Tuning, trained, trained_elements
from edgempi.plan.workload import Workload
from unit.plan.specs import SPECS, classifier, decoder, rich
from unit.plan.training.models import t5

GIB = 2**30
WORK = Workload(rows=16, tokens=1, memory_tokens=128)
TECHNIQUES = [Tuning(technique) for technique in Technique]


BASE, LARGE = t5(12, 768, 12, 3072), t5(24, 1024, 16, 4096)
LABELS = replace(BASE, dec=None, head=Head(rows=2, select="first", bias=True))


@pytest.mark.parametrize(
    ("spec", "tuning", "millions"),
    [
        (BASE, Tuning(Technique.parallel_adapter), 5.10),
        (LARGE, Tuning(Technique.parallel_adapter), 17.72),
        (BASE, Tuning(Technique.parallel_adapter, down_rank=16), 3.54),
        (LARGE, Tuning(Technique.parallel_adapter, down_rank=16), 12.09),
        (LARGE, Tuning(Technique.lora), 9.44),
        (LARGE, Tuning(Technique.adapter), 12.69),
        (LARGE, Tuning(Technique.full), 737.67),
        (BASE, Tuning(Technique.full), 222.90),
    ],
)
def test_published_parameter_counts(spec: ModelSpec, tuning: Tuning, millions: float) -> None:
    assert trained_elements(spec, tuning) / 1e6 == pytest.approx(millions, abs=0.005)


def test_a_head_of_labels_is_trained_by_all() -> None:
    for tuning in TECHNIQUES:
        assert "head.out.weight" in trained(LABELS, "head", tuning)
    assert "head.out.weight" not in trained(LARGE, "head", Tuning(Technique.lora))


def test_a_reduction_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="side network reduction: 8; it divides the width of a layer, 12"):
        trained_elements(classifier(), Tuning(Technique.parallel_adapter))


@pytest.mark.parametrize(("spec", "mrpc"), [(BASE, 17.6), (LARGE, 45.1)])
def test_published_cache_sizes(spec: ModelSpec, mrpc: float) -> None:
    layers = layer_bytes(spec, Tuning(Technique.parallel_adapter, merge=False), WORK)
    assert 3668 * sum(layer.cache for layer in layers) / GIB == pytest.approx(mrpc, abs=0.06)
    assert not any(layer.cache for layer in layer_bytes(spec, Tuning(Technique.lora), WORK))


def test_boundaries_of_the_side_network() -> None:
    side, lora = (layer_bytes(LARGE, Tuning(t), WORK) for t in (Technique.parallel_adapter, Technique.lora))
    d, s = 1024, 128
    assert (side[3].forward, side[3].backward) == (4 * s * (d + d // 8), 4 * s * d // 8)
    assert (lora[3].forward, lora[3].backward) == (4 * s * d, 4 * s * d)
    # The first decoder layer takes the encoder's output, the others their own stream as well.
    assert side[23].forward == 4 * s * (d + d // 8)
    assert side[30].forward == 4 * (s + 1) * (d + d // 8)
    assert side[47].forward == 0
    cached = layer_bytes(LARGE, Tuning(Technique.parallel_adapter), WORK, cached=True)
    assert (cached[3].forward, cached[3].backward) == (4 * s * d // 8, 4 * s * d // 8)


def test_weights_and_gradients_are_the_slides() -> None:
    # PAC's memory table, T5-Large in GB: weights 2.75, 2.80, 2.78; gradients 2.75, 0.05, 0.04.
    for technique, weights, gradients in (("full", 2.75, 2.75), ("adapter", 2.80, 0.05), ("lora", 2.78, 0.04)):
        found = stage_memory(_costs(LARGE, Tuning(Technique(technique))), (0, 48), 16, 1).slides_accounting()
        assert found[0] / GIB == pytest.approx(weights, rel=0.01)
        assert found[2] / GIB == pytest.approx(gradients, rel=0.15)


def test_stored_activations_are_ordered_as_the_slides() -> None:
    found = {
        tuning.technique: stage_memory(_costs(LARGE, tuning), (0, 48), 16, 1).activations / GIB for tuning in TECHNIQUES
    }
    assert found[Technique.full] > found[Technique.lora] > found[Technique.adapter] * 0.9
    assert found[Technique.parallel_adapter] < found[Technique.lora] / 2


def test_cached_training_has_no_backbone_but_its_head() -> None:
    layers = layer_bytes(LARGE, Tuning(Technique.parallel_adapter), WORK, cached=True)
    costs = Costs(pieces(LARGE), layers, ())
    assert costs.frozen_bytes((0, 48)) == 4 * 32128 * 1024
    assert costs.frozen_bytes((0, 47)) == 0


@pytest.mark.parametrize(("copies", "probabilities"), [(0, True), (2, False)])
def test_cached_training_in_the_slides_accounting(copies: int, probabilities: bool) -> None:
    # 88.16 % less than full fine-tuning's 10.83 GB; AdamW's state takes the place of attention probabilities.
    tuning = Tuning(Technique.parallel_adapter)
    layers = layer_bytes(LARGE, tuning, WORK, cached=True, probabilities=probabilities)
    found = stage_memory(Costs(pieces(LARGE), layers, (), copies), (0, 48), 16, 1).slides_accounting()
    assert 0.8 < sum(found) / GIB < 1.28


def _costs(spec: ModelSpec, tuning: Tuning) -> Costs:
    return Costs(pieces(spec), layer_bytes(spec, tuning, WORK), ())


@settings(deadline=None, max_examples=50)
@given(SPECS, st.sampled_from(TECHNIQUES[:3]))
def test_a_stage_of_all_layers_holds_each_weight_once(spec: ModelSpec, tuning: Tuning) -> None:
    costs = _costs(spec, tuning)
    whole = (0, costs.size)
    every = sum({p.name: prod(p.shape) for unit in spec.units for p in inventory(spec, unit)}.values())
    learnt = trained_elements(spec, tuning)
    assert costs.trained_bytes(whole) == 4 * learnt
    kept = every if tuning.technique is Technique.full else every + learnt
    overlap = (
        0 if tuning.technique is Technique.full or spec.head.vocabulary else sum(trained(spec, "head", tuning).values())
    )
    assert costs.frozen_bytes(whole) + costs.trained_bytes(whole) == 4 * (kept - overlap)


@given(st.one_of(SPECS, st.builds(rich), st.builds(decoder)))
def test_pieces_are_the_units_in_order(spec: ModelSpec) -> None:
    runs = pieces(spec)
    assert tuple(unit for run in runs for unit in run) == spec.units
    assert len(runs) == sum(stack.layers for stack in spec.stacks.values())
    costs = Costs(runs, (LayerBytes(),) * len(runs), ())
    for a in range(len(runs)):
        for b in range(a + 1, len(runs) + 1):
            assert costs.span(costs.units((a, b))) == (a, b)
    assert costs.span(()) == (0, 0)


def test_memory_by_hand() -> None:
    layers = (
        LayerBytes(frozen=100, trained=10, stored=5, workspace=3, forward=2, backward=1),
        LayerBytes(frozen=200, trained=20, tables={"t": 7}, stored=6, workspace=4, forward=2, backward=1),
    )
    costs = Costs((("dec.0",), ("dec.1",)), layers, (), optimizer_copies=2)
    found = stage_memory(costs, (1, 2), rows=3, depth=4)
    assert (found.weights, found.gradients, found.optimizer) == (227, 20, 40)
    assert (found.activations, found.buffers) == (3 * (4 * 6 + 4), 3 * 2)
    fixed, stored, passing = memory_line(costs, (1, 2))
    assert found.peak == fixed + 3 * (4 * stored + passing) == 227 + 60 + 84 + 6 + RUNTIME_BYTES
    assert stage_memory(costs, (0, 0), 3, 4).peak == 0
