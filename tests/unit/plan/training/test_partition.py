"""The dynamic program against every pipeline there is, on small random cases."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import inf, isclose
from random import Random

import pytest

from edgempi.cluster.profile import ClusterProfile, Device, Link
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.memory import stage_memory
from edgempi.plan.training.network import Network
from edgempi.plan.training.objective import DEPTHS, Part, PipelineStep, paper_objective, pipeline_s, pipeline_steps
from edgempi.plan.training.partition import Found, Limits, Partition
from edgempi.plan.training.runs import Runs
from edgempi.plan.training.sizes import LayerBytes
from unit.plan.training.workloads import cluster, costs, even_costs


def _cuts(total: int, parts: int) -> Iterator[list[tuple[int, int]]]:
    for inner in combinations(range(1, total), parts - 1):
        edges = [0, *inner, total]
        yield list(pairwise(edges))


def _shares(total: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _shares(total - first, count - 1):
            yield (first, *rest)


def _every(c: Costs, lan: ClusterProfile, rows: int, microbatches: int, depths: str) -> dict[int, float]:
    """By number of stages, the least that any pipeline takes: all cuts, all runs of devices, all shares of rows."""
    network, found = Network.of(lan), {}
    fastest: dict[tuple[object, ...], Part | None] = {}
    for left_out in range(lan.size):
        order = tuple(range(left_out, lan.size))
        for stages in range(1, min(c.size, len(order)) + 1):
            under_way = [min(k, microbatches) for k in DEPTHS[depths](stages)]
            for layers in _cuts(c.size, stages):
                for groups in _cuts(len(order), stages):
                    parts = []
                    for run, (a, b), depth in zip(layers, groups, under_way, strict=True):
                        key = (run, order[a:b], depth)
                        if key not in fastest:
                            fastest[key] = _fastest(c, lan, run, order[a:b], rows, depth)
                        parts.append(fastest[key])
                    if all(parts):
                        seconds = pipeline_s(parts, c, network, microbatches)
                        found[stages] = min(found.get(stages, inf), seconds)
    return found


def _fastest(
    c: Costs, lan: ClusterProfile, run: tuple[int, int], devices: tuple[int, ...], rows: int, depth: int
) -> Part | None:
    best, least = None, inf
    for shares in _shares(rows, len(devices)):
        lent = [lan.devices[device].memory_budget_bytes for device in devices]
        needs = (stage_memory(c, run, share, depth).peak for share in shares)
        if all(budget is None or need <= budget for need, budget in zip(needs, lent, strict=True)):
            pairs = zip(devices, shares, strict=True)
            seconds = max(c.both(device, run).seconds(share) for device, share in pairs)
            if seconds < least:
                best, least = Part(run, devices, shares), seconds
    return best


def _draw(seed: int) -> tuple[Costs, ClusterProfile, int, int, str]:
    """Up to 5 layers and 4 devices, all unlike each other, with and without memory budgets."""
    rng = Random(seed)
    layers, devices = rng.randint(1, 5), rng.randint(1, 4)
    rows, microbatches = rng.randint(1, 4), rng.choice([1, 2, 3, 6])
    times = [
        [[(rng.choice([0.0, rng.random()]), rng.uniform(0.1, 2.0)) for _ in range(layers)] for _ in range(devices)]
        for _ in range(2)
    ]
    names = ["table", "other"]
    sizes = [
        LayerBytes(
            frozen=rng.randrange(50) * 10**6,
            trained=rng.randrange(20) * 10**6,
            tables={name: 10**7 for name in names if rng.random() < 0.4},
            trains_tables=frozenset({"table"}) if rng.random() < 0.5 else frozenset(),
            stored=rng.randrange(1, 20) * 10**6,
            workspace=rng.randrange(5) * 10**6,
            forward=rng.randrange(1, 10) * 10**5,
            backward=rng.choice([0, 10**5]),
        )
        for _ in range(layers)
    ]
    lent = [rng.choice([None, 42 * 10**6 + rng.randrange(30, 400) * 10**6]) for _ in range(devices)]
    links = tuple(
        Link(a, b, rng.random() * 0.1, rng.uniform(1e6, 1e8)) for a in range(devices) for b in range(devices) if a != b
    )
    lan = ClusterProfile(tuple(Device(f"d{d}", "h", 1.0, lent[d]) for d in range(devices)), links)
    return (
        costs(times[0], times[1], sizes, rng.choice([0, 2])),
        lan,
        rows,
        microbatches,
        rng.choice(["classic", "spaced"]),
    )


@pytest.mark.parametrize("block", range(6))
def test_nothing_beats_the_dynamic_program(block: int) -> None:
    fitting = 0
    for seed in range(block * 20, block * 20 + 20):
        c, lan, rows, microbatches, depths = _draw(seed)
        every = _every(c, lan, rows, microbatches, depths)
        order = range(lan.size)
        best = Partition(Runs(c), lan, order, rows, microbatches, depths).best()
        assert set(best) == set(every)
        if every:
            fitting += 1
            assert isclose(min(f.seconds for f in best.values()), min(every.values()), rel_tol=1e-9)
        for stages, least in every.items():
            alone = Partition(Runs(c), lan, order, rows, microbatches, depths, Limits(stages=stages)).best()
            assert isclose(alone[stages].seconds, least, rel_tol=1e-9)
            for found in (alone[stages], best[stages]):
                _is_what_it_says(found, c, lan, rows, microbatches)
    assert fitting > 5


def _is_what_it_says(found: Found, c: Costs, lan: ClusterProfile, rows: int, microbatches: int) -> None:
    assert isclose(found.seconds, pipeline_s(found.parts, c, Network.of(lan), microbatches), rel_tol=1e-9)
    assert [part.layers[0] for part in found.parts[1:]] == [part.layers[1] for part in found.parts[:-1]]
    assert (found.parts[0].layers[0], found.parts[-1].layers[1]) == (0, c.size)
    assert all(sum(part.rows) == rows for part in found.parts)


def test_a_goal_that_is_better_than_all_leaves_the_search_early() -> None:
    c, lan = even_costs(4, 4), cluster(4)
    partition = Partition(Runs(c), lan, range(4), 2, 4)
    best = min(found.seconds for found in partition.best().values())
    met = partition.best(goal=best / 2).values()
    assert min(found.seconds for found in met) >= best


def test_what_a_number_of_stages_costs_beside_is_weighed() -> None:
    c, lan = even_costs(4, 4, size=LayerBytes(trained=10**6)), cluster(4)
    found = Partition(Runs(c), lan, range(4), 4, 1).best()
    stages = min(found, key=lambda s: found[s].seconds)
    extra = {stages: 1e3}
    other = Partition(Runs(c), lan, range(4), 4, 1).best(extra=extra)
    dear = min(other, key=lambda s: other[s].seconds + extra.get(s, 0.0))
    assert dear != stages
    alone = Partition(Runs(c), lan, range(4), 4, 1, limits=Limits(stages=dear)).best()
    assert isclose(other[dear].seconds, alone[dear].seconds)


def test_forced_it_is_eddl_and_ecofl() -> None:
    c, lan = even_costs(4, 8), cluster(4)
    eddl = Partition(Runs(c), lan, range(4), 16, 1, limits=Limits(stages=1, everyone=True)).best()
    assert [(part.layers, part.devices, part.rows) for part in eddl[1].parts] == [((0, 8), (0, 1, 2, 3), (4, 4, 4, 4))]
    ecofl = Partition(Runs(c), lan, range(4), 4, 4, limits=Limits(stages=4, group=1)).best()
    assert [part.devices for part in ecofl[4].parts] == [(0,), (1,), (2,), (3,)]
    assert [part.layers for part in ecofl[4].parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_the_published_program_balances_stages() -> None:
    c = costs([[(0.0, s)] * 6 for s in (1.0, 2.0, 1.0)], [[(0.0, 0.0)] * 6] * 3)
    found = Partition(Runs(c), cluster(3), range(3), 1, 4, limits=Limits(group=1)).balanced()
    assert [part.layers[1] - part.layers[0] for part in found[3].parts] in ([2, 1, 3], [3, 1, 2])
    assert found[3].seconds == 3.0


def test_both_formulas_of_equal_stages() -> None:
    c, microbatches = even_costs(4, 4, 1.0, 2.0), 8
    parts = [Part((s, s + 1), (s,), (1,)) for s in range(4)]
    network = Network.of(cluster(4))
    assert pipeline_s(parts, c, network, microbatches) == (microbatches + 3) * 3.0
    steps = pipeline_steps(parts, c, network)
    assert len(steps) == 7
    assert paper_objective(steps, microbatches) == (microbatches + 3) * 3.0


def test_the_published_formula_by_hand() -> None:
    # Two stages of (1, 2) and (3, 4) s with a link of (0.5, 0.5) s; the second dominates: 4 x 7 + 3 + 1.
    steps = [PipelineStep(1.0, 2.0, 10.0), PipelineStep(0.5, 0.5), PipelineStep(3.0, 4.0)]
    assert paper_objective(steps, 4) == 4 * 7 + 3 + 1 + 10.0
    assert paper_objective([steps[0]], 4) == 4 * 3 + 10.0
