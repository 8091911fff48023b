"""Links that are measured while all ranks send."""

from __future__ import annotations

import pytest

from edgempi.comm import World, probe
from unit.comm.threads import on_ranks


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_ordered_pairs(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STREAM_S", 0.02)
    monkeypatch.setattr(probe, "SMALL_REPEATS", 3)

    def run(world: World) -> list[dict[str, float]]:
        return [link for distance in range(1, world.size) for link in probe.shared_links(world, distance)]

    for found in on_ranks(size, run):
        pairs = {(link["source"], link["target"]) for link in found}
        assert pairs == {(a, b) for a in range(size) for b in range(size) if a != b}
        assert len(found) == len(pairs)
        assert all(link["latency_s"] > 0 and link["bits_per_s"] > 0 for link in found)


def test_messages_are_few_on_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def slow(world: World, distance: int, nbytes: int, count: int) -> float:
        if world.rank == 0:
            asked.append((nbytes, count))
        return max(count - 1, 1) * nbytes * 8 / 1e6

    monkeypatch.setattr(probe, "_stream_s", slow)
    links = on_ranks(2, lambda world: probe.shared_links(world, 1))[0]
    assert [link["bits_per_s"] for link in links] == [pytest.approx(1e6)] * 2
    assert asked[-1] == (probe.LARGE_BYTES // 8, probe.FEWEST_MESSAGES)


def test_messages_are_large_and_many_on_a_fast_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def fast(world: World, distance: int, nbytes: int, count: int) -> float:
        if world.rank == 0:
            asked.append((nbytes, count))
        return max(count - 1, 1) * nbytes * 8 / 250e6

    monkeypatch.setattr(probe, "_stream_s", fast)
    links = on_ranks(2, lambda world: probe.shared_links(world, 1))[0]
    assert [link["bits_per_s"] for link in links] == [pytest.approx(250e6)] * 2
    nbytes, count = asked[-1]
    assert nbytes == probe.LARGE_BYTES
    assert count * nbytes * 8 / 250e6 == pytest.approx(probe.STREAM_S, rel=0.1)


def test_moving_is_what_a_stream_adds_to_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STREAM_S", 0.02)
    clock, asked = [0.0], []

    class Stream:
        """Takes three looks, each of which costs the processor a second."""

        def __init__(self, world: World, distance: int, nbytes: int, count: int) -> None:
            asked.append((nbytes, count))
            self._looks = 0

        def drive(self) -> bool:
            clock[0] += 1.0
            self._looks += 1
            return self._looks == 3

    def work() -> None:
        clock[0] += 10.0

    monkeypatch.setattr(probe, "_Stream", Stream)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    (found,) = on_ranks(1, lambda world: probe.moving_s(world, work, 8 * 1e9))
    messages = round(0.02 * 1e9 / probe.TILE_BYTES)
    assert asked == [(probe.TILE_BYTES, messages)] * probe.MOVING_ROUNDS
    assert found == pytest.approx(3.0 / (messages * probe.TILE_BYTES))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_compute_while_they_stream(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STREAM_S", 0.001)
    calls = []
    found = on_ranks(size, lambda world: probe.moving_s(world, lambda: calls.append(1), 8 * 1e9))
    assert all(0 <= per_byte_s < 1e-3 for per_byte_s in found)
    assert len(calls) >= size * (1 + 2 * probe.MOVING_ROUNDS)
