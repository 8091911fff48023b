"""Predicted times: sums worked out by hand, and what must hold of any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.plan import simulate
from edgempi.plan.drafts import COLUMNS_ONLY, Drafts
from edgempi.plan.latency import predict_latency
from edgempi.plan.messages import sent_bytes
from edgempi.plan.plan import PRESETS, Modes, Plan, Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload
from unit.plan.profiles import cluster, times
from unit.plan.specs import classifier, decoder, programs, rich

FORMS = st.builds(
    Forms,
    wire_dtype=st.sampled_from(["fp32", "bf16", "int8"]),
    overlap=st.sampled_from(["blocking", "ring"]),
    subtiles=st.integers(1, 3),
    column_blocks=st.integers(1, 4),
)


def planned(spec: ModelSpec, ranks: int, forms: Forms | None = None, **parallel: object) -> Plan:
    even = PlannerConfig(name=PlannerName.even)
    return plan_program(spec, [1.0] * ranks, ParallelConfig(**parallel), even, forms or Forms()).prefill


@settings(max_examples=60, deadline=None)
@given(programs(), FORMS, st.integers(1, 3), st.integers(1, 12))
def test_links_are_busy_for_exactly_the_bytes_that_are_sent(
    made: tuple[ModelSpec, Program], forms: Forms, rows: int, tokens: int
) -> None:
    spec, program = made
    plan = replace(
        program.prefill, wire_dtype=forms.wire_dtype, overlap=forms.overlap, subtiles=forms.subtiles,
        column_blocks=forms.column_blocks, microbatches=min(rows, program.prefill.microbatches),
    )  # fmt: skip
    work = Workload(rows, tokens, tokens if spec.enc and spec.dec else 0)
    profile = cluster([1.0 + d for d in plan.devices])
    latency = predict_latency(plan, spec, work, profile)
    for sent, device in zip(sent_bytes(plan, spec, work), latency.devices, strict=True):
        assert device.wire_s == pytest.approx(8 * sum(sent.values()) / 2e7)
        assert latency.total_s >= max(device.compute_s, device.compute_s + device.exposed_s) - 1e-12
        assert latency.total_s >= device.wire_s - 1e-12


def test_one_device_takes_what_its_blocks_take() -> None:
    spec, work = decoder(layers=5), Workload(2, 7)
    (device,) = predict_latency(planned(spec, 1), spec, work, cluster([2.0])).devices
    one, stack = times(2.0), spec.stacks["dec"]
    attention = one.linear.seconds(14, (6 + 2 * 3) * 4, 12) + one.linear.seconds(14, 12, 24)
    attention += one.attention.seconds(2 * 6 * 49 * one.causal_share * 4)
    mlp = one.linear.seconds(14, stack.mlp_columns, 12) + one.linear.seconds(14, 12, stack.mlp_columns)
    found = {block.block: block.compute_s for block in device.blocks}
    assert found["attention"] == pytest.approx(5 * attention)
    assert found["mlp"] == pytest.approx(5 * mlp)
    assert found["connective"] == pytest.approx(5 * 2 * one.connective.seconds(14 * 12))
    assert found["head"] == pytest.approx(one.linear.seconds(14, 17, 12))
    assert device.exposed_s == 0


def test_a_tensor_layer_waits_for_both_halves_of_its_all_reduces() -> None:
    spec, work = classifier(), Workload(1, 8)
    profile = cluster([1.0, 1.0], latency_s=3e-3)
    latency = predict_latency(planned(spec, 2, modes=[Sharing.tensor]), spec, work, profile)
    exposed = {block.block: block.exposed_s for block in latency.devices[0].blocks}
    step = 4 * 12 * 4 * 8 / 2e7 + 3e-3  # half the tokens, 12 wide, fp32
    assert exposed["attention"] == pytest.approx(3 * 2 * step)
    assert exposed["mlp"] == pytest.approx(3 * 2 * step)


@pytest.mark.parametrize("spec", [decoder(layers=12), replace(classifier())], ids=["causal", "bidirectional"])
def test_overlap_hides_transfers_that_are_shorter_than_products(spec: ModelSpec) -> None:
    work, profile = Workload(1, 12), cluster([1.0] * 3, bits_per_s=1e7, latency_s=0.0, call_s=0.0)
    blocking = predict_latency(planned(spec, 3), spec, work, profile)
    ring = predict_latency(planned(spec, 3, Forms(overlap="ring")), spec, work, profile)
    hidden = {b.block: b.exposed_s for b in ring.devices[0].blocks}
    shown = {b.block: b.exposed_s for b in blocking.devices[0].blocks}
    assert hidden["mlp"] < 0.2 * shown["mlp"]
    assert ring.total_s < blocking.total_s


@pytest.mark.parametrize("sharing", [Sharing.hybrid, Sharing.heads])
@pytest.mark.parametrize("subtiles", [1, 2, 4])
@pytest.mark.parametrize("bits_per_s", [1e6, 4e6, 2e7])
def test_layers_that_are_not_simulated_go_on_alike(
    sharing: Sharing, subtiles: int, bits_per_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, work = decoder(layers=24, kv_heads=6, group=1, columns=64), Workload(1, 16)
    for speeds in ([1.0, 1.0], [3.0, 4.0, 1.0], [3.0, 1.0, 2.0, 1.0]):
        profile = cluster(speeds, bits_per_s, call_s=1e-4)
        for forms in (Forms(), Forms(overlap="ring", subtiles=subtiles)):
            plan = planned(spec, len(speeds), forms, modes=[sharing])
            few = predict_latency(plan, spec, work, profile)
            with monkeypatch.context() as patch:
                patch.setattr(simulate, "SIMULATED", 24)
                patch.setattr(simulate, "period", lambda clocks: 0)
                every = predict_latency(plan, spec, work, profile)
            assert few.total_s == pytest.approx(every.total_s, rel=0.01)
            for one, other in zip(few.devices, every.devices, strict=True):
                assert one.wire_s == pytest.approx(other.wire_s)


TWO = [Sharing.tensor, Sharing.sequence, Sharing.hybrid, Sharing.heads]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([decoder(layers=4), classifier(), rich()]),
    st.sampled_from([PRESETS[sharing.value] for sharing in TWO] + [COLUMNS_ONLY]),
    st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["blocking", "ring"]),
    st.sampled_from(["fp32", "int8"]),
)
def test_every_way_of_sharing_ends_and_sends_its_bytes(
    spec: ModelSpec, modes: Modes, tokens: list[int], subtiles: int, overlap: str, wire_dtype: str
) -> None:
    work = Workload(1, sum(tokens), sum(tokens) if spec.enc and spec.dec else 0)
    profile = cluster([1.0 + d for d in range(len(tokens))], bits_per_s=3e6)
    drafts = Drafts(spec, work, profile, Forms())
    forms = Forms(overlap=overlap, subtiles=subtiles, wire_dtype=wire_dtype)
    draft = next(drafts.shared(range(len(tokens)), modes, forms))
    stage = draft.plan.stages[0]
    if stage.tokens:
        stage = replace(stage, tokens=tuple(map(float, tokens)))
    plan = replace(draft.plan, stages=(stage,), overlap=overlap, subtiles=subtiles, wire_dtype=wire_dtype)
    latency = predict_latency(plan, spec, work, profile)
    for sent, device in zip(sent_bytes(plan, spec, work), latency.devices, strict=True):
        assert device.wire_s == pytest.approx(8 * sum(sent.values()) / 3e6)
        assert device.compute_s + device.exposed_s <= latency.total_s + 1e-12


def test_microbatches_fill_a_pipeline() -> None:
    spec = decoder(layers=4)
    profile = cluster([1.0, 1.0], bits_per_s=1e12, latency_s=0.0, call_s=0.0)
    work = Workload(4, 8)

    def seconds(microbatches: int) -> float:
        plan = planned(spec, 2, pipeline=True, modes=[Sharing.single], microbatches=microbatches)
        return predict_latency(plan, spec, work, profile).total_s

    alone = predict_latency(planned(spec, 1), spec, work, cluster([1.0], call_s=0.0)).total_s
    assert seconds(1) == pytest.approx(alone, rel=0.05)
    assert seconds(4) < 0.75 * alone


def test_chunks_of_one_prompt_fill_a_causal_pipeline() -> None:
    spec, work = decoder(layers=4), Workload(1, 16)
    profile = cluster([1.0, 1.0], bits_per_s=1e12, latency_s=0.0, call_s=0.0)
    whole = planned(spec, 2, pipeline=True, modes=[Sharing.single])
    cut = replace(whole, token_chunks=(1.0,) * 4)
    assert predict_latency(cut, spec, work, profile).total_s < 0.8 * predict_latency(whole, spec, work, profile).total_s


def test_a_decode_step_attends_to_the_cache() -> None:
    spec, profile = decoder(layers=2), cluster([1.0, 2.0])
    plan = planned(spec, 2, modes=[Sharing.tensor])
    step = Workload(1, 1, 0, 8)
    short = predict_latency(plan, spec, step, profile, past=4)
    long = predict_latency(plan, spec, step, profile, past=24)
    assert long.total_s > short.total_s
    assert [d.wire_s for d in long.devices] == [d.wire_s for d in short.devices]
