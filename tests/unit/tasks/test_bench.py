"""`bench`: ways become plans, run in turns, and the figures say what was measured."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgempi.comm import World
from edgempi.config.cluster import LabConfig
from edgempi.config.load import compose
from edgempi.config.schema import Config, Overlap, PlannerName, WayConfig, WayName, WireDtype
from edgempi.errors import UserError
from edgempi.plan.workload import Workload
from edgempi.tasks import Job, bench
from edgempi.tasks.agreement import agreement
from edgempi.tasks.correction import save_corrected
from edgempi.tasks.figures import batches, beside_first, rank_figures, way_figures
from edgempi.tasks.model_job import locate_model
from edgempi.tasks.ways import plan_ways
from models.zoo import FAMILIES, build
from unit.comm.threads import on_ranks

BERT = next(model for model in FAMILIES if model.name == "bert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT."""
    made = tmp_path_factory.mktemp("bert")
    build(BERT, made)
    return made


def configured(folder: Path, ways: dict[str, WayConfig], *overrides: str) -> Config:
    """A configuration that times these ways."""
    config = compose(["task=bench", f"model.path={folder}", "data.length=9", "task.repeats=2", *overrides])
    return replace(config, bench=replace(config.bench, ways=ways))


def test_ways_run_in_turns_and_agree(folder: Path, tmp_path: Path) -> None:
    ways = {
        "M-LM": WayConfig(parallel=WayName.tensor),
        "ring": WayConfig(overlap=Overlap.ring),
        "heads": WayConfig(parallel=WayName.heads, overlap=Overlap.ring),
        "int8": WayConfig(overlap=Overlap.ring, wire=WireDtype.int8),
        "alone": WayConfig(parallel=WayName.single),
        "pipeline": WayConfig(parallel=WayName.pipeline),
    }
    trace = tmp_path / "trace.json"
    config = configured(folder, ways, f"task.trace={trace}")
    payload = bench.prepare(config)
    torch.set_num_threads(1)
    result, nothing = on_ranks(2, lambda world: bench.run(Job(config, payload), world), timeout_s=60)
    assert nothing == {}
    found = {way["name"]: way["measured"] for way in result["ways"]}
    assert list(found) == list(ways)
    for name, way in found.items():
        assert len(way["rounds_s"]) == 2
        assert way["relative_error"] <= (5e-2 if name == "int8" else 1e-5), name
        assert way["compute_floor_s"] > 0
        for rank in way["ranks"]:
            assert rank["wall_s"] >= rank["waited_s"] >= 0
    assert found["int8"]["relative_error"] > 1e-4
    assert [found[name]["overlap"] for name in ("M-LM", "ring", "heads")] == ["blocking", "ring", "ring"]
    sent = {name: [rank["bytes_sent"] for rank in way["ranks"]] for name, way in found.items()}
    predicted = {way["name"]: [row["sent_bytes"] for row in way["plan"]] for way in result["ways"]}
    assert sent == predicted
    assert sent["alone"] == [0, 0]
    assert sum(sent["int8"]) < sum(sent["ring"]) / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"trace_{name}.json" for name in ways)
    console = Console(file=io.StringIO(), width=160)
    bench.report(result, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in said for name in ways)


def test_the_configurations_own_way(folder: Path) -> None:
    config = configured(folder, {}, "parallel=sequence")
    (way,) = bench.prepare(config)["ways"]
    assert way["job"]["plan"][0]["mode"] == "sequence"


def test_one_device_is_the_fastest(folder: Path) -> None:
    devices = "+cluster.devices={slow:{speed:1},fast:{speed:3}}"
    config = configured(folder, {"alone": WayConfig(parallel=WayName.single)}, devices)
    _, spec = locate_model(config)
    (way,) = plan_ways(config, spec, Workload(1, 9))
    assert way.job is not None
    assert [row["layers"] for row in way.job.explained] == ["idle", "embed enc 0-2 head"]


def test_what_does_not_fit(folder: Path) -> None:
    """It is planned to run where a real limit decides; elsewhere, and where the planner has to decide, it is not."""
    ways = {"M-LM": WayConfig(parallel=WayName.tensor), "planned": WayConfig(planner=PlannerName.proportional)}
    config = configured(folder, ways, "cluster.memory_budget_bytes=1000000")
    _, spec = locate_model(config)
    work = Workload(1, 9)
    for way in plan_ways(config, spec, work):
        assert not way.runs
        assert way.misfit is not None and "its memory budget is 1 MB" in way.misfit
    lab = replace(config, cluster=replace(config.cluster, lab=LabConfig(), devices=config.cluster.named_devices()))
    hosts = {name: replace(device, host=name) for name, device in lab.cluster.devices.items()}
    lab = replace(lab, cluster=replace(lab.cluster, devices=hosts))
    for way in plan_ways(lab, spec, work):
        assert way.runs and way.misfit is not None


def test_an_impossible_way_is_refused(folder: Path) -> None:
    ways = {"chunks": WayConfig(parallel=WayName.pipeline, token_chunks=[1.0, 1.0])}
    with pytest.raises(UserError, match="chunks"):
        bench.prepare(configured(folder, ways))


def test_a_pipeline_of_more_devices_than_layers(folder: Path) -> None:
    config = configured(folder, {"pipe": WayConfig(parallel=WayName.pipeline)}, "cluster.ranks=4")
    (way,) = bench.prepare(config)["ways"]
    assert [row["layers"] for row in way["job"]["plan"]] == ["embed enc 0", "enc 1", "enc 2 head", "idle"]


def test_figures() -> None:
    """Ten Mbit at 10 Mbit/s take a second, of which 0.25 s were exposed."""
    rounds = [{"wall_s": wall, "waited_s": 0.25, "bytes_sent": 1_250_000} for wall in (1.0, 3.0, 2.0)]
    rank = rank_figures(rounds, [1.5], 10e6)
    assert rank == {
        "wall_s": 2.0, "compute_s": 1.75, "waited_s": 0.25, "bytes_sent": 1_250_000, "transfer_s": 1.0,
        "hidden": 0.75, "floor_s": 1.5,
    }  # fmt: skip
    slower = {**rank, "transfer_s": 1.8}
    way = way_figures([rank, slower], [[1.0, 3.0, 2.0], [1.5, 2.0, 2.0]])
    assert way["rounds_s"] == [1.5, 3.0, 2.0]
    assert (way["compute_floor_s"], way["wire_floor_s"]) == (1.5, 1.8)
    assert way["over_floor"] == pytest.approx(2.0 / 1.8)
    unknown = way_figures([rank_figures(rounds, [], None)], [[1.0]])
    assert (unknown["compute_floor_s"], unknown["wire_floor_s"], unknown["over_floor"]) == (None, None, None)
    assert beside_first([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])["p50"] == 2.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), st.integers(1, 20))
def test_batches_fit(needs: list[tuple[int, int]], room: int) -> None:
    """Every way once, in order; what is held together fits, and no two neighbours could have been one."""
    made = batches(needs, [room, room])
    assert [way for members in made for way in members] == list(range(len(needs)))
    sums = [[sum(needs[way][rank] for way in members) for rank in (0, 1)] for members in made]
    for members, totals in zip(made, sums, strict=True):
        assert len(members) == 1 or max(totals) <= room
    for members, totals in zip(made[1:], sums, strict=False):
        assert max(t + n for t, n in zip(totals, needs[members[0]], strict=True)) > room


def test_agreement_leaves_padding_out() -> None:
    reference = {"x": torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])}
    ours = {"x": torch.tensor([[[3.0, 4.0], [0.0, 9.0]]])}
    assert agreement(ours, reference, torch.tensor([[True, False]])) == {"relative_error": 0.0, "same_argmax": 1.0}
    off: dict[str, Any] = agreement(ours, reference, None)
    assert off["same_argmax"] == 0.5
    assert off["relative_error"] == pytest.approx((82 / 26) ** 0.5)


def test_nothing_moves_without_communication(folder: Path) -> None:
    """The floor of one rank runs though no other rank takes part, whatever the way of sharing."""
    from edgempi.inference.floor import muted
    from edgempi.inference.runner import Runner
    from edgempi.parallel.batch import Batch

    ways = {
        "tensor": WayConfig(parallel=WayName.tensor), "sequence": WayConfig(parallel=WayName.sequence),
        "ring": WayConfig(overlap=Overlap.ring), "icollective": WayConfig(overlap=Overlap.icollective),
        "pipeline": WayConfig(parallel=WayName.pipeline),
    }  # fmt: skip
    config = configured(folder, ways)
    path, spec = locate_model(config)
    planned = plan_ways(config, spec, Workload(1, 9))
    batch = Batch.of(spec, torch.ones(1, 9, dtype=torch.long))

    def run(world: World) -> list[int]:
        sent = []
        for way in planned:
            assert way.job is not None
            runner = Runner(world, way.job.program, spec, path)
            world.traffic.reset()
            if world.rank == 1:
                muted(runner.prefill).forward(batch)
            sent.append(sum(world.traffic.bytes_sent.values()))
            world.barrier()
        return sent

    assert on_ranks(2, run, timeout_s=60) == [[0] * len(ways)] * 2


def test_a_profile_is_corrected(folder: Path, tmp_path: Path) -> None:
    """A device that took twice what was predicted, over all ways, is twice as slow in the corrected profile."""
    from edgempi.cluster.profile import ClusterProfile, Device, DeviceTimes, ElementTime, LinearTime, Link
    from edgempi.cluster.profile_text import load_profile, profile_to_yaml

    element = ElementTime(0.0, 1e-9)
    times = DeviceTimes(LinearTime(0.0, 1e-10, 0.0), element, element, {"fp32": element})
    devices = tuple(Device(f"device{rank}", "localhost", times=times) for rank in range(2))
    links = (Link(0, 1, 1e-4, 1e8), Link(1, 0, 1e-4, 1e8))
    (tmp_path / "old.yaml").write_text(profile_to_yaml(ClusterProfile(devices, links, "fp32"), "test"))
    new = tmp_path / "new.yaml"
    config = configured(folder, {}, f"cluster.profile={tmp_path}/old.yaml", f"task.save={new}")
    (way,) = bench.prepare(config)["ways"]
    assert way["predicted"]["total_s"] > 0
    ranks = [
        {"compute_s": factor * way["predicted"]["devices"][rank]["compute_s"]} for rank, factor in ((0, 1), (1, 2))
    ]
    save_corrected(config, [{**way, "measured": {"ranks": ranks}}, {"predicted": None, "measured": None}])
    rates = [device.times.linear.s_per_flop for device in load_profile(str(new)).devices if device.times]
    assert rates == pytest.approx([1e-10, 2e-10])
    with pytest.raises(UserError, match=r"task\.save"):
        bench.prepare(configured(folder, {}, f"task.save={new}"))
