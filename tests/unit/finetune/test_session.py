"""Runs that end anywhere and go on: with the losses of one that did not, computing again only what was lost."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from edgempi.finetune import session as session_module
from edgempi.finetune.trunk import Trunk
from unit.finetune.sessions import ALONE, COUNT, IN_PLACE, LONE, PAC, SHARED, Ways, Workshop

BATCHES = 3
"""Of an epoch."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test makes what waiting for the disk protects from, a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A model with rows."""
    return Workshop(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> list[float]:
    """The losses of a run of two devices that nothing happens to."""
    (tmp_path / "undisturbed").mkdir()
    return Workshop(tmp_path / "undisturbed").run(["a", "b"], PAC).losses


def test_a_run_fills_its_cache_once(workshop: Workshop, whole: list[float]) -> None:
    found = workshop.run(["a", "b"], PAC)
    assert found.phases == ["train"] * BATCHES + ["cached"] * 3 * BATCHES
    assert found.losses == whole
    assert found.refilled == 0
    assert [counters.recomputed for counters in found.counters] == [0, 0]
    assert workshop.cached("a") | workshop.cached("b") == set(range(COUNT))
    assert not workshop.cached("a") & workshop.cached("b")


@pytest.mark.parametrize(
    ("ended", "trained"), [(2, 1), (3, 3), (7, 0), (9, 0)], ids=["filling", "filled", "reading", "read"]
)
def test_who_is_left_computes_what_was_lost(ended: int, trained: int, workshop: Workshop, whole: list[float]) -> None:
    """One of two devices is gone for good; the other one has the model, the checkpoints and its part of the cache."""
    workshop.run(["a", "b"], PAC, to=ended)
    workshop.lose("b")
    kept = workshop.cached("a")
    assert (0 < len(kept) < COUNT) == (ended > BATCHES)
    found = workshop.run(["a"], LONE, resume=True)
    # Of a pipeline's first stage nobody has the layers above: before anything was read, an epoch fills the cache anew.
    assert found.refilled == {2: 8, 3: 0}.get(ended, COUNT - len(kept))
    assert found.told[-1:] == ([(found.refilled, found.refilled)] if found.refilled else [])
    assert found.phases == ["train"] * trained + ["cached"] * (4 * BATCHES - ended - trained)
    # Mini-batches of an epoch that was begun stay what they are; a lone device is free to shuffle those after it.
    begun = -ended % BATCHES
    assert found.losses[:begun] == pytest.approx(whole[ended : ended + begun], rel=1e-5)
    assert workshop.cached("a") == set(range(COUNT))


def test_a_lone_device_goes_on_with_its_own_losses(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    whole = Workshop(tmp_path / "undisturbed").run(["a"], LONE).losses
    first = workshop.run(["a"], LONE, to=2)
    workshop.lose("a")
    second = workshop.run(["a"], LONE, to=5, resume=True)
    assert (second.refilled, second.phases) == (8, ["train", "cached", "cached"])
    third = workshop.run(["a"], LONE, resume=True)
    assert third.refilled == 0
    assert [*first.losses, *second.losses, *third.losses] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("ways", [PAC, IN_PLACE], ids=["redistribute", "in place"])
@pytest.mark.parametrize("ended", [2, 7])
def test_a_run_is_resumed_twice(ended: int, ways: Ways, workshop: Workshop, tmp_path: Path) -> None:
    """The same devices, one of which has lost its cache: every loss is that of a run that nothing happened to."""
    (tmp_path / "undisturbed").mkdir()
    whole = Workshop(tmp_path / "undisturbed").run(["a", "b"], ways).losses
    losses = workshop.run(["a", "b"], ways, to=ended).losses
    had = workshop.cached("b")
    workshop.lose("b")
    second = workshop.run(["a", "b"], ways, to=8, resume=True)
    if ways is PAC:
        assert second.refilled == (len(had) if ended == 7 else 8)
    third = workshop.run(["a", "b"], ways, resume=True)
    assert third.refilled == 0
    assert [*losses, *second.losses, *third.losses] == pytest.approx(whole, rel=1e-5)


def test_a_checkpoint_within_an_epoch_outlives_the_next_epoch(workshop: Workshop, whole: list[float]) -> None:
    workshop.run(["a", "b"], PAC)
    for step in range(8, 13):
        shutil.rmtree(workshop.folder / "run" / f"checkpoint-{step}")
    found = workshop.run(["a", "b"], PAC, resume=True)
    assert found.refilled == 0
    assert found.losses == pytest.approx(whole[7:], rel=1e-6)


def test_a_new_run_computes_only_what_the_cache_lacks(workshop: Workshop) -> None:
    workshop.run(["a"], LONE, to=2)
    shutil.rmtree(workshop.folder / "run")
    found = workshop.run(["a"], LONE)
    assert (found.refilled, set(found.phases)) == (COUNT - 8, {"cached"})
    assert found.counters[0].stored == COUNT - 8


def test_without_room_the_backbone_runs_on(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "undisturbed").mkdir()
    whole = Workshop(tmp_path / "undisturbed").run(["a"], LONE).losses
    losses = workshop.run(["a"], LONE, to=5).losses
    workshop.lose("a")
    found = workshop.run(["a"], LONE, resume=True, disk_bytes=0)
    assert found.told == [(4, COUNT)]  # the first mini-batch says that there is no more to be had
    assert found.moved[0] is not None and len(found.moved[0].missing) == COUNT
    assert [*losses, *found.losses] == pytest.approx(whole, rel=1e-5)


def test_damage_is_computed_again(workshop: Workshop, whole: list[float]) -> None:
    """A record that does not hold what it says is found when it is to be sent."""
    workshop.run(["a", "b"], PAC, to=2)
    (shard,) = (workshop.folder / "a").glob("*/*.shard")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    found = workshop.run(["a", "b"], PAC, resume=True)
    assert found.refilled == 1
    assert found.losses == pytest.approx(whole[2:], rel=1e-5)


@pytest.mark.parametrize("ways", [Ways(ALONE, ALONE), Ways(ALONE, ALONE, IN_PLACE.after)], ids=["moved", "in place"])
@pytest.mark.parametrize("resumed", [False, True])
def test_memory_is_given_back_once_the_backbone_is_gone(
    ways: Ways, resumed: bool, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    left: list[int] = []
    load = session_module.load_trunk

    def loaded(*words: Any) -> Trunk:
        trunk = load(*words)
        held.extend(weakref.ref(run) for unit, run in trunk._network.units.items() if unit != "head")
        return trunk

    if resumed:
        workshop.run(["a"], ways, to=5)
        workshop.lose("a")
    monkeypatch.setattr(session_module, "load_trunk", loaded)
    monkeypatch.setattr(session_module, "give_back", lambda: left.append(sum(one() is not None for one in held)))
    workshop.run(["a"], ways, resume=resumed)
    assert held
    assert left == [0]


def test_devices_may_join(workshop: Workshop) -> None:
    """A lone device's run goes on with two; nothing is computed again, a part of the cache moves."""
    workshop.run(["a"], LONE, to=7)
    found = workshop.run(["a", "b"], Ways(SHARED, SHARED), resume=True)
    assert found.refilled == 0
    moved = [one for one in found.moved if one is not None]
    assert (moved[0].sent, moved[1].taken, moved[1].sent) == (len(workshop.cached("b")),) * 2 + (0,)
    assert len(found.losses) == 5


@pytest.mark.parametrize("ways", [PAC, IN_PLACE], ids=["redistribute", "in place"])
def test_held_out_rows_are_read_once_training_goes_on_from_the_cache(
    ways: Ways, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(session_module, "give_back", lambda: given_back.append(1))
    (tmp_path / "bounded").mkdir()
    found = workshop.run(["a", "b"], ways, evaluates=True)
    assert [read for _, read in found.judged] == [False, True, True, True]
    assert len(given_back) == 2  # by each device: nobody needs the backbone any more
    # Under a bound, rows to train on come first: those to judge by are run apart once these are there.
    bounded = Workshop(tmp_path / "bounded").run(["a", "b"], ways, evaluates=True, disk_bytes=1 << 30)
    assert bounded.judged == found.judged
    resumed = workshop.run(["a", "b"], ways, evaluates=True, resume=True, epochs=5)
    assert [read for _, read in resumed.judged] == [True]
    alone = workshop.run(["c"], LONE, evaluates=True, resume=True, epochs=6)
    assert [read for _, read in alone.judged] == [True]


def test_without_room_held_out_rows_keep_the_backbone(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "ample").mkdir()
    ample = Workshop(tmp_path / "ample")
    whole = ample.run(["a"], LONE, evaluates=True).judged
    room = sum(path.stat().st_size for path in (tmp_path / "ample" / "a").glob("*/*.shard"))
    found = workshop.run(["a"], LONE, evaluates=True, disk_bytes=room - 1)
    assert [read for _, read in found.judged] == [False] * 4
    assert found.phases.count("cached") == 9
    assert [loss for loss, _ in found.judged] == pytest.approx([loss for loss, _ in whole], rel=1e-5)
