"""Clocks and links as events: small cases worked out by hand, in seconds and bytes of one second each."""

from __future__ import annotations

import pytest

from edgempi.cluster.profile import Link
from edgempi.plan import simulate
from edgempi.plan.simulate import Await, Compute, Drain, Give, Program, Ring, Send


def ring(size: int, latency_s: float = 0.0, now: list[float] | None = None) -> Ring:
    """Devices whose links carry a byte a second."""
    return Ring([Link(d, (d + 1) % size, latency_s, 8.0) for d in range(size)], now or [0.0] * size)


def test_a_message_travels_while_its_device_computes() -> None:
    two = ring(2, latency_s=0.5)
    two.run([[Send("a", 1, 3), Compute("a", 10.0)], [Compute("b", 1.0), Await("b", 1), Compute("b", 2.0)]])
    assert two.now == [10.0, 5.5]
    assert two.spent[0].wire == {"a": 3.0}
    assert (two.spent[1].exposed, two.spent[1].compute) == ({"b": 2.5}, {"b": 3.0})


def test_messages_of_a_link_follow_each_other_and_latencies_overlap() -> None:
    two = ring(2, latency_s=5.0)
    two.run([[Send("a", 1, 2), Send("a", 2, 2), Drain("a")], [Await("b", 1), Await("b", 2)]])
    assert two.now == [4.0, 9.0]


def test_a_relay_goes_on_while_its_device_computes() -> None:
    three = ring(3)
    programs: list[Program] = [[Send("a", 1, 2, hops=2)], [Compute("b", 9.0), Await("b", 1)], [Await("c", 1)]]
    three.run(programs)
    assert three.now == [0.0, 9.0, 4.0]
    assert three.spent[1].wire == {"a": 2.0}


@pytest.mark.parametrize(("poll_s", "there_s"), [(9.0, 11.0), (3.0, 5.0), (2.0, 4.0)])
def test_a_relay_waits_for_the_next_poll(poll_s: float, there_s: float) -> None:
    three = ring(3)
    programs: list[Program] = [[Send("a", 1, 2, hops=2)], [Compute("b", 9.0, poll_s), Await("b", 1)], [Await("c", 1)]]
    three.run(programs)
    assert three.now == [0.0, 9.0, there_s]


@pytest.mark.parametrize(("given_s", "there_s"), [(1.0, 4.0), (7.0, 9.0)])
def test_a_sum_goes_on_once_both_parts_are_there(given_s: float, there_s: float) -> None:
    three = ring(3)
    three.run([[Send("a", 1, 2)], [Compute("b", given_s), Give("b", 1, 2), Compute("b", 1.0)], [Await("c", 1)]])
    assert three.now == [0.0, given_s + 1.0, there_s]


def test_a_relay_waits_for_what_the_link_carries_already() -> None:
    three = ring(3)
    programs: list[Program] = [
        [Send("a", 1, 1, hops=2)],
        [Send("b", 2, 5), Await("b", 1)],
        [Await("c", 2), Await("c", 1)],
    ]
    three.run(programs)
    assert three.now[2] == 6.0


def test_what_goes_on_alike_is_not_simulated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Program] = [
        [Compute("a", 1.0 + d), Send("a", 0, 2, hops=2), Await("a", 0), Compute("b", 0.5), Drain("b")] for d in range(3)
    ]
    for d, program in enumerate(programs):  # device d waits for the message of the device before
        program[1:3] = [Send("a", d, 2, hops=2), Await("a", (d - 1) % 3), Await("a", (d - 2) % 3)]
    few, all_of_them = ring(3), ring(3)
    few.repeat(programs, 40)
    monkeypatch.setattr(simulate, "SETTLED", 40)
    all_of_them.repeat(programs, 40)
    assert few.now == pytest.approx(all_of_them.now)
    for one, other in zip(few.spent, all_of_them.spent, strict=True):
        assert one.compute == pytest.approx(other.compute)
        assert one.wire == pytest.approx(other.wire)
        assert one.exposed == pytest.approx(other.exposed)
