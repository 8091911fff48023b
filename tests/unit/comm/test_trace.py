"""What ranks recorded, as one timeline in Chrome's format."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch

from edgempi.comm import World
from edgempi.comm.timeline import collect_timeline, timeline
from edgempi.comm.trace import COMPUTE, LANES, RECEIVE, SEND, WAIT, Event, Trace
from edgempi.comm.wire import FP32
from edgempi.plan.layout import Region
from unit.comm.threads import on_ranks


def check_format(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the document against the trace event format; returns its slices."""
    assert set(document) == {"traceEvents", "displayTimeUnit"}
    assert document["displayTimeUnit"] == "ms"
    named = set()
    rows: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    slices = []
    for event in document["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
            key = "sort_index" if event["name"].endswith("sort_index") else "name"
            assert isinstance(event["args"][key], int if key == "sort_index" else str)
            named.add((event["name"], event["pid"], event["tid"]))
            continue
        assert event["ph"] == "X"
        assert event["cat"] in LANES and isinstance(event["name"], str)
        assert event["ts"] >= 0 and event["dur"] >= 0
        rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        slices.append(event)
    for (pid, tid), spans in rows.items():
        assert ("process_name", pid, 0) in named and ("thread_name", pid, tid) in named
        _check_nesting(spans)
    return slices


def _check_nesting(spans: list[tuple[float, float]]) -> None:
    """Of two slices of one thread, one holds the other or they do not touch: anything else cannot be drawn."""
    rounding = 0.002
    open_until: list[float] = []
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_until and open_until[-1] <= start + rounding:
            open_until.pop()
        assert not open_until or stop <= open_until[-1] + rounding, (start, stop, open_until)
        open_until.append(stop)


def test_nothing_is_recorded_while_it_is_off() -> None:
    trace = Trace()
    with trace.span(COMPUTE, "dec.0"):
        flight = trace.post(SEND, "dec.0", 8, 1)
    trace.add(WAIT, "dec.0", 0.0, 1.0)
    trace.land([flight])
    assert flight is None and trace.events == []
    assert trace.span(COMPUTE, "a") is trace.span(COMPUTE, "b")  # no object is made


def test_a_new_start_forgets() -> None:
    trace = Trace()
    trace.start()
    trace.add(WAIT, "first", 0.0, 1.0)
    trace.start()
    trace.add(WAIT, "second", 1.0, 2.0)
    trace.stop()
    trace.add(WAIT, "third", 2.0, 3.0)
    assert [event.name for event in trace.events] == ["second"]


def test_a_span_ends_where_its_body_fails() -> None:
    trace = Trace()
    trace.start()
    with pytest.raises(ValueError, match="odd"), trace.span(COMPUTE, "dec.0"):
        raise ValueError("odd")
    (event,) = trace.events
    assert event.name == "dec.0" and event.stop_s >= event.start_s


def test_ranks_stand_on_one_clock() -> None:
    """Rank 1's clock is 100 s ahead; its event began 2 ms after rank 0's."""
    ranks = [[Event(COMPUTE, "dec.0", 5.0, 5.010, {})], [Event(COMPUTE, "dec.1", 105.002, 105.004, {})]]
    first, second = check_format(timeline(ranks, [0.0, 100.0], ["tv", "router"]))
    assert (first["pid"], first["ts"], first["dur"]) == (0, 0.0, pytest.approx(10_000))
    assert (second["pid"], second["ts"], second["dur"]) == (1, pytest.approx(2000), pytest.approx(2000))


def test_messages_under_way_together_have_rows_of_their_own() -> None:
    sends = [
        Event(SEND, name, start, stop, {"bytes": 1}) for name, start, stop in (("a", 0, 4), ("b", 1, 2), ("c", 3, 5))
    ]
    nested = [Event(COMPUTE, "inner", 1, 2, {}), Event(COMPUTE, "outer", 0, 3, {})]
    slices = check_format(timeline([[*sends, *nested]], [0.0], ["tv"]))
    thread = {one["name"]: one["tid"] for one in slices}
    assert thread["a"] != thread["b"] == thread["c"]
    assert thread["inner"] == thread["outer"]
    assert [one["name"] for one in slices if one["cat"] == COMPUTE] == ["outer", "inner"]


def test_no_event_at_all() -> None:
    assert check_format(timeline([[], []], [0.0, 0.1], ["tv", "router"])) == []


def test_two_ranks_messages_meet() -> None:
    """Every message is there on both sides, with the bytes that were counted, and arrives after it was sent."""
    left, right = Region((0, 2), (0, 3), (0, 4)), Region((0, 2), (3, 5), (0, 4))
    whole = Region((0, 2), (0, 5), (0, 4))

    def run(world: World) -> tuple[dict[str, Any] | None, int, float]:
        group, traffic = world.group(0), world.traffic
        traffic.reset()
        traffic.trace.start()
        own = (left, right)[world.rank]
        with traffic.within("enc.0"), traffic.trace.span(COMPUTE, "enc.0"):
            group.all_gather(torch.ones(own.shape), [3, 2], FP32)
        with traffic.within("to enc.1"):
            _, sends = world.transfer(torch.ones(own.shape), {0: left, 1: right}, {0: whole, 1: whole}, torch.float32)
            sends.wait()
        traffic.trace.stop()
        counted, waited_s = traffic.as_dict(), sum(traffic.waited_s.values())
        assert counted["bytes_sent_to"] == {str(1 - world.rank): counted["bytes_sent"]}
        return collect_timeline(world, ["tv", "router"]), counted["bytes_sent"], waited_s

    results = on_ranks(2, run)
    document = results[0][0]
    assert results[1][0] is None and document is not None
    slices = check_format(json.loads(json.dumps(document)))
    for rank, (_, nbytes, waited_s) in enumerate(results):
        own = [one for one in slices if one["pid"] == rank]
        assert sum(one["args"]["bytes"] for one in own if one["cat"] == SEND) == nbytes > 0
        assert sum(one["dur"] for one in own if one["cat"] == WAIT) == pytest.approx(waited_s * 1e6, abs=1.0)
        assert [one["name"] for one in own if one["cat"] == COMPUTE] == ["enc.0"]
    for sender, receiver in ((0, 1), (1, 0)):
        sent = [one for one in slices if (one["pid"], one["cat"]) == (sender, SEND)]
        got = [one for one in slices if (one["pid"], one["cat"]) == (receiver, RECEIVE)]
        assert Counter(_message(one, sender, receiver) for one in sent) == Counter(
            _message(one, sender, receiver) for one in got
        )
        for one, other in zip(sent, got, strict=True):
            assert other["ts"] + other["dur"] >= one["ts"] - 5000  # the clocks agree to a few milliseconds


def _message(one: dict[str, Any], sender: int, receiver: int) -> tuple[str, int, int]:
    assert one["args"]["peer"] == (receiver if one["cat"] == SEND else sender)
    return (one["name"], one["args"]["bytes"], sender)
