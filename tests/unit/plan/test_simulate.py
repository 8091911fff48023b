"""Clocks and links as events: small cases worked out by hand, in seconds and bytes of one second each."""

from __future__ import annotations

import pytest

from edgempi.cluster.profile import Link
from edgempi.plan import simulate
from edgempi.plan.simulate import Await, Compute, Drain, Give, Program, Ring, Send, Take, sent_before


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


def products(first: int, stop: int) -> Program:
    """Reading the weight takes 3 s, each tile's rows 1 s."""
    return [Compute("b", 3.0 + stop - first)]


@pytest.mark.parametrize(
    ("busy_s", "end_s"),
    [
        (0.0, 16.0),  # 2-6 the first; those of 4 and 6 are both here by then: 6-11; the last, here at 8: 11-15, and 1 s
        (5.0, 16.0),  # 5-10 two, 10-15 two
        (9.0, 17.0),  # 9-16 all four
    ],
)
def test_messages_that_are_here_are_taken_together(busy_s: float, end_s: float) -> None:
    two = ring(2)
    keys = (1, 2, 3, 4)
    sends: Program = [Send("a", key, 2) for key in keys]
    two.run([sends, [Compute("b", busy_s), Take("b", keys, 4, products), Compute("b", 1.0)]])
    assert two.now[1] == end_s


def test_more_than_the_least_may_have_been_taken() -> None:
    two = ring(2)
    keys = (1, 2, 3)
    sends: Program = [Send("a", key, 2) for key in keys]
    takes: Program = [Take("b", keys, 1, products), Compute("c", 1.0), Take("b", keys, 2, products)]
    two.run([sends, [Compute("b", 5.0), *takes, Compute("c", 1.0)]])
    assert two.now[1] == 5.0 + 5.0 + 1.0 + 1.0  # the first two at 5 s, so that the second step has nothing to take
    assert two.spent[1].exposed == {}


def test_a_message_may_be_awaited_in_the_next_program() -> None:
    two = ring(2)
    two.run([[Send("a", 1, 4), Compute("a", 1.0)], [Send("a", 1, 2), Compute("b", 3.0)]])
    two.run([[Await("a", sent_before(1)), Send("b", 1, 1)], [Await("a", sent_before(1)), Await("b", 1)]])
    assert two.now == [2.0, 5.0]
    assert (two.spent[0].exposed, two.spent[1].exposed) == ({"a": 1.0}, {"a": 1.0, "b": 1.0})


def test_what_goes_on_alike_is_not_simulated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Program] = [
        [Compute("a", 1.0 + d), Send("a", 0, 2, hops=2), Await("a", 0), Compute("b", 0.5), Drain("b")] for d in range(3)
    ]
    for d, program in enumerate(programs):  # device d waits for the message of the device before
        program[1:3] = [Send("a", d, 2, hops=2), Await("a", (d - 1) % 3), Await("a", (d - 2) % 3)]
    few, all_of_them = ring(3), ring(3)
    few.repeat(programs, programs, 40)
    monkeypatch.setattr(simulate, "SIMULATED", 40)
    monkeypatch.setattr(simulate, "period", lambda clocks: 0)
    all_of_them.repeat(programs, programs, 40)
    assert few.now == pytest.approx(all_of_them.now)
    for one, other in zip(few.spent, all_of_them.spent, strict=True):
        assert one.compute == pytest.approx(other.compute)
        assert one.wire == pytest.approx(other.wire)
        assert one.exposed == pytest.approx(other.exposed)


def test_layers_that_take_turns_are_seen() -> None:
    clocks = [[0.0, 1.0], [5.0, 6.0], [9.0, 10.0], [15.0, 16.0], [19.0, 20.0], [25.0, 26.0]]
    assert [simulate.period(clocks[:count]) for count in range(2, 7)] == [0, 0, 0, 0, 2]
    assert simulate.period([[0.0, 2.0], [3.0, 4.0], [6.0, 7.0], [9.0, 10.0]]) == 1
