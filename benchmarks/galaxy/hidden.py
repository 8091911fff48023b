"""What a trace says about overlap: how much of the transfers is hidden, and what a layer takes beside its wire time.

transfer        what a rank's messages of the layers take on its link: bytes and headers at the line rate
exposed         what of its waiting falls within the layers, while a message to it is under way: posted by its sender
                and not here yet. The rest of its waiting is idle: another device still computes
hidden          1 - exposed / transfer
computed        what of a layer a rank does not wait: less a layer cannot take, however well its transfers are hidden
layer           from a layer's start to the next one's; the last one ends when the last of its messages has arrived
tile            computation and transfer of one row tile in one product: a layer has, in `P` products that communicate,
                `N x subtiles` tiles to compute and `(N - 1) x subtiles` to send
un-hideable     computation that can run beside no transfer of its layer: of one tile through all its products that
                communicate (the last tile to arrive must be multiplied before its sum can leave), and of one sub-tile
                through what works on the own tokens only (norms, and the MLP where that is not split; being computed
                when the next block asks for it, a layer's counts for the next one, and the last one's not)

Source of the tile model: Galaxy (arXiv 2405.17245), tile-based overlap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.wire import on_wire_s

LAYER = re.compile(r"(enc|dec)\.\d+")
OWN = "mlp own"
"""The span of an MLP that is not split: its products need no tile of another device."""
Span = tuple[float, float]


@dataclass
class _Pass:
    """One rank's events of one pass, in seconds."""

    layers: list[Span]
    inner: list[Span]
    waits: list[Span]
    flights: list[Span]
    sent_bytes: list[int]
    end_s: float


def read_trace(trace: Mapping[str, Any], bits_per_s: float, subtiles: int) -> dict[str, Any]:
    """What the trace of a way that overlaps shows.

    Args:
        trace: the document that `task.trace` leaves; it may hold several passes.
        bits_per_s: rate of every link, headers counted.
        subtiles: into how many tiles a device's tokens were cut.

    Returns:
        `hidden` of each rank, and `idle_s` of each in a layer; of the rank for which `over_wire` (the layer's time over
        wire plus un-hideable) is longest, the medians over passes and layers `tile_compute_s`, `tile_transfer_s`,
        `layer_s`, `computed_s`, `wire_s`, `unhideable_s`; `passes`.
    """
    events = _by_rank(trace)
    ranks = [_passes(own, _flights(own, rank, events)) for rank, own in enumerate(events)]
    found = [_rank(passes, bits_per_s, subtiles, len(ranks)) for passes in ranks]
    slowest = max(found, key=lambda one: one["over_wire"])
    return {
        **slowest,
        "hidden": [one["hidden"] for one in found],
        "idle_s": [one["idle_s"] for one in found],
        "passes": len(ranks[0]),
    }


def _rank(passes: Sequence[_Pass], bits_per_s: float, subtiles: int, ranks: int) -> dict[str, float]:
    hidden, idle_s, layer_s, inner_s, own_s = [], [], [], [], []
    for one in passes:
        transfer_s = sum(on_wire_s(nbytes, bits_per_s) for nbytes in one.sent_bytes)
        waited_s = sum(stop - start for start, stop in one.waits)
        exposed_s = sum(_within(flight, wait) for wait in one.waits for flight in one.flights)
        hidden.append(min(1.0, max(0.0, 1 - exposed_s / transfer_s)))
        idle_s.append((waited_s - exposed_s) / len(one.layers))
        starts = [start for start, _ in one.layers]
        for span in zip(starts, [*starts[1:], one.end_s], strict=True):
            inner = sum(_within(product, span) for product in one.inner)
            waited = sum(_within(wait, span) for wait in one.waits)
            layer_s.append(span[1] - span[0])
            inner_s.append(inner)
            own_s.append(span[1] - span[0] - waited - inner)
    wire_s = median(sum(on_wire_s(nbytes, bits_per_s) for nbytes in one.sent_bytes) / len(one.layers) for one in passes)
    messages = len(passes[0].sent_bytes) / len(passes[0].layers)
    products = messages / ((ranks - 1) * subtiles)
    unhideable_s = median(inner_s) / (ranks * subtiles) + median(own_s) / subtiles
    return {
        "hidden": median(hidden),
        "idle_s": median(idle_s),
        "tile_compute_s": median(inner_s) / (products * ranks * subtiles),
        "tile_transfer_s": wire_s / messages,
        "layer_s": median(layer_s),
        "computed_s": median(inner + own for inner, own in zip(inner_s, own_s, strict=True)),
        "wire_s": wire_s,
        "unhideable_s": unhideable_s,
        "over_wire": median(layer_s) / (wire_s + unhideable_s),
    }


def _by_rank(trace: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    ranks = range(1 + max(event["pid"] for event in slices))
    return [sorted((e for e in slices if e["pid"] == rank), key=lambda e: e["ts"]) for rank in ranks]


def _flights(own: Sequence[Mapping[str, Any]], rank: int, ranks: Sequence[Sequence[Mapping[str, Any]]]) -> list[Span]:
    """When messages to a rank are under way, from any sender's post to the arrival: stretches that do not overlap."""
    found = []
    for peer, events in enumerate(ranks):
        posted = sorted(e["ts"] for e in events if e["cat"] == "send" and e["args"]["peer"] == rank)
        landed = sorted(e["ts"] + e["dur"] for e in own if e["cat"] == "receive" and e["args"]["peer"] == peer)
        found += [(start / 1e6, stop / 1e6) for start, stop in zip(posted, landed, strict=True)]
    merged: list[Span] = []
    for start, stop in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _passes(events: Sequence[Mapping[str, Any]], flights: list[Span]) -> list[_Pass]:
    """One rank's events by pass: a pass begins with the first layer."""
    layers = [event for event in events if event["cat"] == "compute" and LAYER.fullmatch(event["name"])]
    firsts = [event["ts"] / 1e6 for event in layers if event["name"] == layers[0]["name"]]
    passes = []
    for start_s, next_s in zip(firsts, [*firsts[1:], math.inf], strict=True):
        own = [event for event in events if start_s <= event["ts"] / 1e6 < next_s]
        of_layers = [event for event in own if LAYER.fullmatch(event["name"])]
        spans = [_span(event) for event in of_layers if event["cat"] == "compute"]
        arrivals = [_span(event)[1] for event in of_layers if event["cat"] == "receive"]
        end_s = max([spans[-1][1], *arrivals])
        inner = [_span(e) for e in own if e["cat"] == "compute" and not LAYER.fullmatch(e["name"]) and e["name"] != OWN]
        products = [span for span in inner if any(a <= span[0] and span[1] <= b for a, b in spans)]
        passes.append(
            _Pass(
                layers=spans,
                inner=products,
                waits=[_cut(_span(event), (start_s, end_s)) for event in own if event["cat"] == "wait"],
                flights=flights,
                sent_bytes=[e["args"]["bytes"] for e in of_layers if e["cat"] == "send"],
                end_s=end_s,
            )
        )
    return passes


def _span(event: Mapping[str, Any]) -> Span:
    return event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6


def _cut(span: Span, window: Span) -> Span:
    start = min(max(span[0], window[0]), window[1])
    return start, max(start, min(span[1], window[1]))


def _within(span: Span, window: Span) -> float:
    start, stop = _cut(span, window)
    return stop - start
