"""Simulated mini-batches: bubbles of known size, communication counted by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import isclose

import pytest

from edgempi.cluster.profile import ClusterProfile, Link
from edgempi.plan.training.actions import classic_depths, gpipe_depths, schedule, spaced_depths
from edgempi.plan.training.network import Network
from edgempi.plan.training.objective import Part, pipeline_s
from edgempi.plan.training.simulate import simulate
from edgempi.plan.training.sizes import LayerBytes
from unit.plan.training.workloads import cluster, costs, even_costs, plan


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("microbatches", [1, 4, 9])
@pytest.mark.parametrize("form", ["1f1b", "gpipe"])
def test_the_bubble_of_equal_stages(stages: int, microbatches: int, form: str) -> None:
    c = even_costs(stages, stages, 1.0, 2.0, LayerBytes(forward=1, backward=1))
    p = plan(c, [((s, s + 1), [s], [1]) for s in range(stages)], microbatches)
    depths = classic_depths(stages) if form == "1f1b" else gpipe_depths(stages, microbatches)
    run = simulate(schedule(p, c, microbatches, depths), c, cluster(stages, bits_per_s=1e30))
    assert isclose(run.step_s, (microbatches + stages - 1) * 3.0)
    bubble = (stages - 1) / (microbatches + stages - 1)
    for device in range(stages):
        assert isclose(run.idle_s(device) / run.step_s, bubble, abs_tol=1e-12)
        most = stages - device if form == "1f1b" else microbatches
        assert run.in_flight[device] == min(most, microbatches)


def test_no_bar_overlaps_another_of_its_device() -> None:
    c = costs([[(0.1, 1.0)] * 4, [(0.0, 0.7)] * 4, [(0.2, 1.3)] * 4], [[(0.0, 0.5)] * 4] * 3,
              [LayerBytes(trained=1000, forward=100_000, backward=10_000)] * 4)  # fmt: skip
    p = plan(c, [((0, 2), [0, 1], [1, 2]), ((2, 4), [2], [1])], 4)
    run = simulate(schedule(p, c, 12, classic_depths(2)), c, cluster(3))
    for device in range(3):
        own = [b for b in run.bars if b.device == device and b.kind in ("forward", "backward", "step")]
        assert all(a.stop_s <= b.start_s + 1e-12 for a, b in pairwise(own))
        assert isclose(sum(b.stop_s - b.start_s for b in own), run.busy_s[device])


def test_one_message_by_hand() -> None:
    c = even_costs(2, 2, 1.0, 1.0, LayerBytes(forward=10**6, backward=5 * 10**5))
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1], [1])], 1)
    run = simulate(schedule(p, c, 1, classic_depths(2)), c, cluster(2, bits_per_s=8e6, latency_s=0.25))
    assert isclose(run.step_s, 1.0 + 1.25 + 2.0 + 0.75 + 1.0)
    parts = [Part((0, 1), (0,), (1,)), Part((1, 2), (1,), (1,))]
    assert isclose(run.step_s, pipeline_s(parts, c, Network.of(cluster(2, 8e6, latency_s=0.25)), 1))


def test_more_under_way_hides_messages() -> None:
    # A message takes as long as a stage: with one microbatch under way per stage to come, stages wait for gradients.
    c = even_costs(3, 3, 1.0, 1.0, LayerBytes(forward=10**6, backward=10**6))
    p = plan(c, [((s, s + 1), [s], [1]) for s in range(3)], 12)
    lan = cluster(3, bits_per_s=8e6)
    classic = simulate(schedule(p, c, 12, classic_depths(3)), c, lan).step_s
    spaced = simulate(schedule(p, c, 12, spaced_depths(3)), c, lan).step_s
    assert spaced < 0.8 * classic
    assert isclose(spaced, 12 * 2.0 + 2 * (2.0 + 2.0))


def test_a_sum_waits_for_the_last_device_and_hides_under_backward() -> None:
    size = LayerBytes(trained=10**6)
    c = costs([[(0.0, 0.0)] * 2] * 2, [[(0.0, 1.0)] * 2, [(0.0, 2.0)] * 2], [size] * 2)
    p = plan(c, [((0, 2), [0, 1], [1, 1])], 1)
    lan = cluster(2, bits_per_s=8e6)
    whole = simulate(schedule(p, c, 2, (1,), bucket_bytes=10**9), c, lan)
    assert isclose(whole.step_s, 4.0 + 2.0)
    parted = simulate(schedule(p, c, 2, (1,), bucket_bytes=1), c, lan)
    assert isclose(parted.step_s, 4.0 + 1.0)


def test_messages_of_a_device_share_its_uplink() -> None:
    c = even_costs(3, 2, 1.0, 0.0, LayerBytes(forward=10**6))
    p = plan(c, [((0, 1), [0], [1]), ((1, 2), [1, 2], [1, 1])], 1)
    run = simulate(schedule(p, c, 2, classic_depths(2)), c, cluster(3, bits_per_s=8e6))
    assert isclose(run.step_s, 2.0 + 2 * 1.0 + 1.0)


def test_the_optimizer_ends_a_step() -> None:
    c = even_costs(1, 2, 1.0, 1.0)
    c = replace(c, times=tuple(replace(t, update_s=(0.5, 0.25)) for t in c.times))
    p = plan(c, [((0, 2), [0], [1])], 1)
    run = simulate(schedule(p, c, 1, (1,)), c, ClusterProfile(cluster(1).devices, (Link(0, 0, 0.0, 1.0),)))
    assert isclose(run.step_s, 4.75)
    assert run.bars[-1].kind == "step"


def test_an_exchange_is_as_long_as_its_busiest_end() -> None:
    network = Network.of(cluster(3, bits_per_s=8.0, latency_s=0.5))
    assert network.exchange_s({(0, 1): 2, (0, 2): 3, (1, 0): 4, (2, 1): 0}) == 2.5 + 3.5
    assert network.exchange_s({(0, 2): 3, (1, 2): 4}) == 3.5 + 4.5
    assert network.exchange_s({}) == 0
