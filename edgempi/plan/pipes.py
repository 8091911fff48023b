"""Pipelines of single devices as drafts: what `planner=auto` tries beside groups.

Each device has a run of layers, through which microbatches, or the chunks of one prompt, stream. With one part the
stages work one after another, and the fastest devices take all that they have memory for; with more the slowest stage
sets the pace. Chunks of a causal model take equally long if later ones, which attend to more tokens, are shorter.
Source: GPipe (arXiv 1811.06965) for microbatches, TeraPipe (arXiv 2102.07988) for chunks of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from edgempi.plan.balance import Cost, balance, layers_s
from edgempi.plan.drafts import Drafts, most_units
from edgempi.plan.memory import predict_memory
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.planners import Forms, unit_runs
from edgempi.plan.search import Draft, Vectors
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.workload import Workload


class Pipes:
    """Makes pipelines for one model and request.

    Args:
        drafts: knows the devices.
        spec: the model.
        work: the request.
    """

    def __init__(self, drafts: Drafts, spec: ModelSpec, work: Workload) -> None:
        self._drafts, self._spec, self._work = drafts, spec, work
        self._layers = sum(stack.layers for stack in spec.stacks.values())

    def over(self, devices: Sequence[int], forms: Forms, parts: int, chunked: bool) -> Iterator[Draft]:
        """A pipeline over devices in this order.

        Args:
            devices: one stage each; nothing is made where one would get no layer.
            forms: dtypes.
            parts: how many microbatches, or chunks of one prompt; 1: no cut.
            chunked: whether the parts are chunks.
        """
        seconds = [self._drafts.layer_s[device] for device in devices]
        most = [self._layers_held(device, place, len(devices)) for place, device in enumerate(devices)]
        if parts == 1:
            counts = _fill(self._layers, seconds, most)
        else:
            counts = balance(self._layers, [Cost(0.0, each) for each in seconds], most)
        if counts is None or 0 in counts:
            return
        vectors: dict[str, tuple[int, ...]] = {"layers": counts}
        if chunked:
            vectors["chunks"] = self._chunks(parts, devices[0])

        def build(vectors: Vectors, forms: Forms) -> Plan:
            groups = [[device] for device in devices]
            runs = unit_runs(self._spec, groups, [1.0] * (max(devices) + 1), vectors["layers"])
            stages = tuple(Stage(run, (d,), PRESETS["single"]) for run, d in zip(runs, devices, strict=True))
            chunks = tuple(map(float, vectors.get("chunks", ())))
            return self._drafts.with_idle(stages, replace(forms, token_chunks=chunks), 1 if chunked else parts)

        yield Draft(vectors, dict.fromkeys(vectors, 1), forms, build)

    def _chunks(self, parts: int, device: int) -> tuple[int, ...]:
        (stack,) = self._spec.stacks.values()
        times, rows, total = self._drafts.times(device), self._work.rows, self._work.tokens
        whole_s = layers_s(times, self._spec, rows, {self._spec.last: total})[self._spec.last]
        pairs = rows * stack.heads * stack.head_dim * total * (total + 1) / 2
        square = min(0.99, pairs * times.attention.s_per_element / whole_s)
        # Tokens up to t of S are the part (1 - square) t/S + square (t/S)^2 of the work; chunk i ends at i/parts of it.
        ends = [0]
        for part in range(1, parts + 1):
            b, c = 1 - square, -part / parts
            reached = -c / b if square < 1e-9 else (-b + (b * b - 4 * square * c) ** 0.5) / (2 * square)
            ends.append(total if part == parts else round(reached * total))
        return tuple(stop - start for start, stop in pairwise(ends))

    def _layers_held(self, device: int, place: int, stages: int) -> int:
        """How many layers a device has memory for beside the end of the model that it holds."""
        lent = self._drafts.lent(device)
        first = [place == 0 and unit == self._spec.units[0] for unit in self._spec.units]
        last = [place == stages - 1 and not is_layer(u) and u != self._spec.units[0] for u in self._spec.units]
        ends = tuple(u for u, a, b in zip(self._spec.units, first, last, strict=True) if a or b)
        beside = self._alone(ends, device)
        layered = tuple(unit for unit in self._spec.units if is_layer(unit))
        inside = self._alone(layered, device)
        least = predict_memory(beside, self._spec, device, self._work)
        layers = predict_memory(inside, self._spec, device, self._work)
        free = lent - least.peak - layers.activations
        return most_units(free, (layers.weights + layers.cache) / self._layers, self._layers)

    def _alone(self, units: tuple[str, ...], device: int) -> Plan:
        return self._drafts.with_idle((Stage(units, (device,), PRESETS["single"]),), self._drafts.forms)


def _fill(total: int, seconds: Sequence[float], most: Sequence[int]) -> tuple[int, ...] | None:
    """All that fits to the fastest, then to the next."""
    counts = [0] * len(seconds)
    for device in sorted(range(len(seconds)), key=lambda d: seconds[d]):
        counts[device] = min(most[device], total - sum(counts))
    return tuple(counts) if sum(counts) == total else None
