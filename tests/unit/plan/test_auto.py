"""The planner against every plan there is on small clusters, and against every other planner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest

from edgempi.cluster.profile import ClusterProfile
from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.plan.auto import GROUP_MODES, Allowed, Choice, plan_auto
from edgempi.plan.check import check_program
from edgempi.plan.drafts import Drafts
from edgempi.plan.galaxy import plan_galaxy
from edgempi.plan.latency import predict_latency
from edgempi.plan.memory import RUNTIME_BYTES, predict_memory, shortage
from edgempi.plan.plan import Block, Connective, Plan, Table
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.search import CLEARLY
from edgempi.plan.spec import Embedding, ModelSpec
from edgempi.plan.workload import Workload
from unit.plan.profiles import cluster
from unit.plan.specs import classifier, decoder, rich, stack

WORK = Workload(1, 6)
ALLOWED = Allowed(subtiles=(2, 1))
WORDS = Embedding(vocabulary=3, width=12, positions=32)
SMALL = replace(classifier(), enc=stack(layers=2, kv_heads=3, group=1, columns=6, norm_first=False, embedding=WORDS))


def chosen(spec: ModelSpec, profile: ClusterProfile, work: Workload = WORK, allowed: Allowed = ALLOWED) -> Choice:
    choice = plan_auto(spec, work, profile, "fp32", allowed)
    check_program(choice.program, spec)
    return choice


def cuts(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to share `total` among `parts`."""
    for head in product(range(total + 1), repeat=parts - 1):
        if sum(head) <= total:
            yield (*head, total - sum(head))


def everything(spec: ModelSpec, profile: ClusterProfile, limited: bool) -> Iterator[Plan]:
    """Every device alone, and every group with every share of heads, columns and tokens in every form.

    A table's shares cost no time, so they count where memory is `limited` alone.
    """
    drafts = Drafts(spec, WORK, profile, Forms())
    heads, columns = spec.stacks["enc"].heads, spec.stacks["enc"].mlp_columns
    for device in range(profile.size):
        yield drafts.alone(device)
    for devices in (group for n in range(2, profile.size + 1) for group in combinations(range(profile.size), n)):
        count = len(devices)
        for modes in GROUP_MODES:
            kinds: dict[str, list[tuple[int, ...]]] = {}
            if modes.attention == Block.tensor:
                kinds["enc heads"] = list(cuts(heads, count))
            if modes.mlp == Block.tensor:
                kinds["enc columns"] = list(cuts(columns, count))
            if modes.connective == Connective.tokens:
                kinds["tokens"] = list(cuts(WORK.tokens, count))
            if modes.embedding == Table.vocabulary:
                kinds["vocabulary"] = list(cuts(WORDS.vocabulary, count)) if limited else [(2, 1)]
            forms = [Forms()]
            if modes.connective == Connective.tokens and Block.tensor in (modes.attention, modes.mlp):
                forms += [Forms(overlap="ring", subtiles=n, column_blocks=4) for n in ALLOWED.subtiles]
            for values in product(*kinds.values()):
                vectors = dict(zip(kinds, values, strict=True))
                yield from (drafts.group_plan(devices, modes, vectors, form) for form in forms)


@pytest.mark.parametrize(
    ("speeds", "bits_per_s", "lent"),
    [
        ([3.0, 1.0], 2e7, None),
        ([2.0, 1.5], 2e6, None),
        ([1.0, 1.0], 1e8, None),
        ([3.0, 1.0], 2e7, (0.6, 0.7)),
        ([2.0, 1.5], 2e7, (0.7, 0.7)),
    ],
)
def test_it_equals_brute_force(speeds: Sequence[float], bits_per_s: float, lent: tuple[float, ...] | None) -> None:
    alone = predict_memory(Drafts(SMALL, WORK, cluster(speeds), Forms()).alone(0), SMALL, 0, WORK).peak - RUNTIME_BYTES
    budgets = None if lent is None else [int(RUNTIME_BYTES + share * alone) for share in lent]
    profile = cluster(speeds, bits_per_s, budgets)
    fitting = (
        p
        for p in everything(SMALL, profile, lent is not None)
        if max(shortage(p, SMALL, WORK, budgets or [None] * 2)) <= 0
    )
    best = min(predict_latency(plan, SMALL, WORK, profile).total_s for plan in fitting)
    found = chosen(SMALL, profile)
    assert CLEARLY * best <= found.ranking[0].score.seconds <= best / CLEARLY


@pytest.mark.parametrize("spec", [decoder(layers=4, columns=64), classifier(), rich()], ids=["dec", "enc", "both"])
@pytest.mark.parametrize("speeds", [[1.0, 1.0], [4.0, 2.0, 1.0]], ids=str)
@pytest.mark.parametrize("bits_per_s", [1e6, 1e8])
def test_it_is_never_slower_than_the_other_planners(spec: ModelSpec, speeds: list[float], bits_per_s: float) -> None:
    profile = cluster(speeds, bits_per_s)
    work = Workload(2, 12, 12 if spec.enc and spec.dec else 0)
    found = chosen(spec, profile, work).ranking[0].score.seconds
    plans = [plan_galaxy(spec, work, profile, Forms(overlap="ring", subtiles=2, column_blocks=4))]
    for name in (PlannerName.even, PlannerName.proportional):
        for sharing in (Sharing.tensor, Sharing.sequence, Sharing.hybrid, Sharing.heads, Sharing.data):
            parallel = ParallelConfig(modes=[sharing])
            plans.append(plan_program(spec, speeds, parallel, PlannerConfig(name=name), Forms()).prefill)
        pipeline = ParallelConfig(modes=[Sharing.single], pipeline=True)
        plans.append(plan_program(spec, speeds, pipeline, PlannerConfig(name=name), Forms()).prefill)
    assert found <= min(predict_latency(plan, spec, work, profile).total_s for plan in plans) / CLEARLY


def test_a_slow_link_leaves_the_fastest_device_alone() -> None:
    program = chosen(classifier(), cluster([1.0, 3.0, 1.0], bits_per_s=1e3)).program
    assert program.prefill.working == (1,)
    assert program.prefill.name == "single"


def test_a_device_that_would_hold_others_up_idles() -> None:
    assert chosen(decoder(layers=6, columns=64), cluster([4.0, 4.0, 0.01], 1e9)).program.prefill.working == (0, 1)


def test_chunks_stream_where_memory_wants_a_pipeline_and_links_are_slow() -> None:
    spec, work = decoder(layers=8, columns=64), Workload(1, 32)
    alone = predict_memory(Drafts(spec, work, cluster([1.0]), Forms()).alone(0), spec, 0, work).peak - RUNTIME_BYTES
    profile = cluster([1.0, 1.0], 2e5, [int(RUNTIME_BYTES + 0.8 * alone)] * 2, latency_s=0.0, call_s=0.0)
    plan = chosen(spec, profile, work).program.prefill
    assert plan.name == "pipeline of 2"
    assert len(plan.token_chunks) > 1


def test_a_lighter_wire_is_taken_where_it_is_allowed() -> None:
    profile = cluster([1.0, 1.0], 5e6)
    both = chosen(classifier(), profile, allowed=replace(ALLOWED, wires=("fp32", "int8")))
    assert both.program.prefill.wire_dtype == "int8"
    assert both.ranking[0].score.seconds < chosen(classifier(), profile).ranking[0].score.seconds


def test_a_lighter_wire_must_save_something() -> None:
    """On links that hide all there is to send, and alone, nothing is rounded."""
    wires = replace(ALLOWED, wires=("int8", "bf16", "fp32"))
    for profile in (cluster([1.0, 1.0], 1e12, latency_s=0.0), cluster([1.0])):
        assert chosen(classifier(), profile, allowed=wires).program.prefill.wire_dtype == "fp32"


def test_an_all_reduce_does_not_round_to_int8() -> None:
    profile = cluster((1.0, 1.0, 1.0), 1e7)
    found = chosen(classifier(), profile, allowed=replace(ALLOWED, wires=("fp32", "bf16", "int8")))
    wires = {tried.plan.stages[0].modes.name: tried.plan.wire_dtype for tried in found.ranking}
    assert (wires["tensor"], wires["hybrid"]) == ("bf16", "int8")


def test_a_device_that_lends_next_to_nothing_stays_idle() -> None:
    plan = chosen(classifier(), cluster([1.0, 1.0], 1e9, [None, 1_000])).program.prefill
    assert plan.working == (0,)


def test_new_tokens_count() -> None:
    profile = cluster([2.0, 1.0], 2e7, latency_s=2e-3)
    long = chosen(decoder(layers=4, columns=64), profile, Workload(1, 12, 0, 12))
    assert long.program.prefill.working == (0,)  # each step would pay every layer's latency
    assert chosen(decoder(layers=4, columns=64), cluster([2.0, 1.0], 2e8, latency_s=0.0)).program.prefill.working == (
        0,
        1,
    )


def test_what_fits_nowhere_says_what_is_missing_and_what_would_fit() -> None:
    alone = predict_memory(Drafts(SMALL, WORK, cluster([1.0]), Forms()).alone(0), SMALL, 0, WORK).peak - RUNTIME_BYTES
    budget = int(RUNTIME_BYTES + 0.4 * alone)
    short = cluster([1.0, 1.0], budgets=[budget] * 2)
    with pytest.raises(UserError, match=r"no way of sharing fits; the closest is .*, where d. lacks .* MB") as raised:
        plan_auto(SMALL, WORK, short, "fp32", ALLOWED)
    assert "Set weights=bf16 (it fits then), or lend" in str(raised.value)


def test_many_devices_and_layers_take_few_trials() -> None:
    spec = decoder(layers=80, kv_heads=32, group=1, columns=2048)
    assert chosen(spec, cluster([1.0, 2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0], 1e9)).evaluations <= 200
