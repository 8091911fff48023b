"""Groups of devices that share every layer, as drafts with balanced shares: what `planner=auto` tries.

Heads, MLP columns and vocabulary are shared block by block, as fast as the memory of each device allows; tokens equally
and in proportion to speed. Devices that take no part are stages without units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import inf

from edgempi.cluster.profile import ClusterProfile, DeviceTimes
from edgempi.plan.apportion import apportion
from edgempi.plan.balance import Cost, attention_cost, balance, head_cost, layers_s, mlp_cost
from edgempi.plan.memory import predict_memory, unit_bytes
from edgempi.plan.plan import PRESETS, Block, Connective, Modes, Plan, Stage, Table
from edgempi.plan.planners import Forms, column_quantum
from edgempi.plan.search import FEW, Draft, Vectors
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload

COLUMNS_ONLY = Modes(Connective.tokens, Block.sequence, Block.tensor, Table.vocabulary, Table.vocabulary)
"""Attention on the own tokens with gathered keys, the MLP by columns."""


VOCABULARY_GRAINS = 64
"""Into how many pieces the vocabulary is thought to be cut when its shares are refined."""
TIGHT = 0.95
"""Above what part of what a device lends its share may have been cut for memory's sake."""
MEMORY_ROUNDS = 4
"""How often shares are cut anew to fit into memory."""


class Drafts:
    """Makes drafts for one model, request and cluster.

    Args:
        spec: the model.
        work: the request.
        cluster: measured.
        forms: of plans that are not asked for in others.
    """

    def __init__(self, spec: ModelSpec, work: Workload, cluster: ClusterProfile, forms: Forms) -> None:
        self._spec, self._work, self._cluster, self.forms = spec, work, cluster, forms
        self._unit_bytes = unit_bytes(spec, forms.weight_dtype)
        self._tokens = {name: work.of(spec, name) for name in spec.stacks}
        self.layer_s = [
            sum(stack.layers * seconds for stack, seconds in zip(spec.stacks.values(), each.values(), strict=True))
            for each in (layers_s(self.times(d), spec, work.rows, self._tokens) for d in range(cluster.size))
        ]
        """What all layers would take on each device alone."""

    @property
    def fastest(self) -> list[int]:
        """Devices, the fastest first."""
        return sorted(range(self._cluster.size), key=lambda device: self.layer_s[device])

    def alone(self, device: int) -> Plan:
        """The whole model on one device."""
        return self.with_idle((Stage(self._spec.units, (device,), PRESETS["single"]),), self.forms)

    def rows(self, devices: Sequence[int]) -> Draft:
        """Rows of the batch shared, the whole model on each device."""
        costs = [Cost(0.0, self.layer_s[device]) for device in devices]
        rows = balance(self._work.rows, costs, [self._work.rows] * len(devices))
        assert rows is not None, "rows have no limit"

        def build(vectors: Vectors, forms: Forms) -> Plan:
            weights = tuple(map(float, vectors["rows"]))
            return self.with_idle((Stage(self._spec.units, tuple(devices), PRESETS["data"], rows=weights),), forms)

        return Draft({"rows": rows}, {"rows": 1}, self.forms, build)

    # Groups that share every layer.

    def shared(self, devices: Sequence[int], modes: Modes, forms: Forms) -> Iterator[Draft]:
        """One group, its blocks balanced for its devices' speeds and memory; with equal and with balanced tokens."""
        # Weights for every stack's tokens; an encoder-decoder that is about to write reads one token, and many beside.
        total = max(self._work.of(self._spec, name) for name in self._spec.stacks)
        splits: list[tuple[int, ...]] = [()]
        if modes.connective == Connective.tokens:
            speeds = [1 / self.layer_s[device] for device in devices]
            splits = list(dict.fromkeys([apportion(total, speeds), apportion(total, [1.0] * len(devices))]))
        for tokens in splits:
            start: dict[str, tuple[int, ...]] = {"tokens": tokens} if tokens else {}
            balanced = self._balanced(devices, modes, forms, start)
            tight = self._fills_up(devices, modes, forms, balanced)
            yield self._draft(devices, modes, forms, balanced, tight)
            if tight and len(devices) <= FEW:
                # Heads are coarse: one more or less here or there may let columns fit where they are faster.
                for heads in self._other_heads(balanced):
                    vectors = self._balanced(devices, modes, forms, {**start, **heads})
                    yield self._draft(devices, modes, forms, vectors, tight)

    def _draft(self, devices: Sequence[int], modes: Modes, forms: Forms, vectors: Vectors, tight: bool) -> Draft:
        grains = {what: self._grain(what, len(devices)) for what in vectors if self._takes_time(what)}
        fixed = {what: counts for what, counts in vectors.items() if what not in grains}

        def build(moving: Vectors, forms: Forms) -> Plan:
            plan = self.group_plan(tuple(devices), modes, {**fixed, **moving}, forms)
            if tight and "vocabulary" in fixed:  # what costs no time goes where the rest leaves room
                room = self._room(plan, devices, {"vocabulary": fixed["vocabulary"]})
                words = self._shares_of_words(devices, room)
                return self.group_plan(tuple(devices), modes, {**fixed, **moving, "vocabulary": words}, forms)
            return plan

        return Draft({what: vectors[what] for what in grains}, grains, forms, build)

    def _fills_up(self, devices: Sequence[int], modes: Modes, forms: Forms, vectors: Vectors) -> bool:
        """Whether memory, and not speed, may have set a device's share."""
        plan = self.group_plan(tuple(devices), modes, vectors, forms)
        return any(self._need(plan, device) > TIGHT * self.lent(device) for device in devices)

    def _other_heads(self, vectors: Vectors) -> Iterator[Vectors]:
        """The head shares in which one key-value head is at another device."""
        for name, stack in self._spec.stacks.items():
            counts = vectors.get(f"{name} heads", ())
            for giver, taker in permutations(range(len(counts)), 2):
                if counts[giver]:
                    moved = list(counts)
                    moved[giver], moved[taker] = moved[giver] - stack.group, moved[taker] + stack.group
                    yield {f"{name} heads": tuple(moved)}

    def group_plan(self, devices: tuple[int, ...], modes: Modes, vectors: Vectors, forms: Forms) -> Plan:
        """The plan of one group with these shares."""
        stacks = self._spec.stacks
        stage = Stage(
            units=self._spec.units,
            devices=devices,
            modes=modes,
            heads={name: vectors[f"{name} heads"] for name in stacks if f"{name} heads" in vectors},
            mlp_columns={name: vectors[f"{name} columns"] for name in stacks if f"{name} columns" in vectors},
            vocabulary=vectors.get("vocabulary", ()),
            tokens=tuple(map(float, vectors.get("tokens", ()))),
        )
        return self.with_idle((stage,), forms)

    def _balanced(self, devices: Sequence[int], modes: Modes, forms: Forms, start: Vectors) -> Vectors:
        """Shares as fast as can be; where memory is short, again with the room that the last ones showed to be there.

        What a device needs beside its shares (activations, loading) depends on them, hence the rounds. The last
        shares are given even where they do not fit: then their shortage tells what is missing.
        """
        vectors = self._shares(devices, modes, start, [inf] * len(devices))
        for _ in range(MEMORY_ROUNDS):
            plan = self.group_plan(tuple(devices), modes, vectors, forms)
            if all(self._need(plan, device) <= self.lent(device) for device in devices):
                break
            vectors = self._shares(devices, modes, start, self._room(plan, devices, vectors))
        return vectors

    def _room(self, plan: Plan, devices: Sequence[int], vectors: Vectors) -> list[float]:
        """The bytes that each device has for these shares: what it lends, less what else the plan takes there."""
        room = []
        for place, device in enumerate(devices):
            shared = sum(vectors[what][place] * size for what, size in self._unit_bytes.items() if what in vectors)
            room.append(max(0.0, self.lent(device) - (self._need(plan, device) - shared)))
        return room

    def _shares_of_words(self, devices: Sequence[int], room: Sequence[float]) -> tuple[int, ...]:
        most = [most_units(free, self._unit_bytes["vocabulary"], self._words) for free in room]
        costs = self._word_costs([self.times(device) for device in devices])
        return balance(self._words, costs, most) or apportion(self._words, [n + 1 for n in most])

    def _shares(self, devices: Sequence[int], modes: Modes, start: Vectors, room: Sequence[float]) -> Vectors:
        """Heads first, whose grain is coarse; columns and vocabulary fit into what memory is left."""
        left, vectors = list(room), dict(start)
        times = [self.times(device) for device in devices]

        def share(what: str, total: int, grain: int, costs: Sequence[Cost]) -> None:
            size = self._unit_bytes[what] * grain
            most = [most_units(free, size, total // grain) for free in left]
            given = tuple(count // grain for count in start.get(what, ()))
            counts = given or balance(total // grain, costs, most) or apportion(total // grain, [n + 1 for n in most])
            for place, count in enumerate(counts):
                left[place] -= count * size
            vectors[what] = tuple(count * grain for count in counts)

        rows = self._work.rows
        for name, stack in self._spec.stacks.items():
            if modes.attention == Block.tensor:
                costs = [attention_cost(t, stack, rows, self._tokens[name]) for t in times]
                share(f"{name} heads", stack.heads, stack.group, costs)
        for name, stack in self._spec.stacks.items():
            if modes.mlp == Block.tensor:
                grain = column_quantum(stack, len(devices))
                costs = [mlp_cost(t, stack, rows, self._tokens[name]).of(grain) for t in times]
                share(f"{name} columns", stack.mlp_columns, grain, costs)
        if Table.vocabulary in (modes.embedding, modes.head):
            vectors["vocabulary"] = self._shares_of_words(devices, left)
        return vectors

    def _need(self, plan: Plan, device: int) -> int:
        return predict_memory(plan, self._spec, device, self._work).peak

    @property
    def _words(self) -> int:
        return self._spec.stacks[self._spec.last].embedding.vocabulary

    def _word_costs(self, times: Sequence[DeviceTimes]) -> list[Cost]:
        """A table that is only looked up is shared equally: it costs memory alone."""
        if not self._spec.head.vocabulary:
            return [Cost(0.0, 1.0)] * len(times)
        tokens = 1 if self._work.writes(self._spec) else self._work.tokens
        return [head_cost(each, self._spec, self._work.rows, tokens) for each in times]

    def _takes_time(self, what: str) -> bool:
        """Whether a share has a part in the time: a table that is only looked up has none."""
        return what != "vocabulary" or self._spec.head.vocabulary

    def _grain(self, what: str, devices: int) -> int:
        name, _, kind = what.partition(" ")
        if name == "vocabulary":
            return max(1, self._words // VOCABULARY_GRAINS)
        if kind == "heads":
            return self._spec.stacks[name].group
        return column_quantum(self._spec.stacks[name], devices) if kind == "columns" else 1

    # What the parts need.

    def with_idle(self, stages: tuple[Stage, ...], forms: Forms, microbatches: int = 1) -> Plan:
        """The plan of these stages; the other devices idle, each a stage without units."""
        working = {device for stage in stages for device in stage.devices}
        idle = (Stage((), (d,), PRESETS["single"]) for d in range(self._cluster.size) if d not in working)
        return forms.plan((*stages, *idle), microbatches)

    def times(self, device: int) -> DeviceTimes:
        """What a device was measured to take."""
        times = self._cluster.devices[device].times
        assert times is not None, "planners that need times refuse a profile without"
        return times

    def lent(self, device: int) -> float:
        """The bytes that a device lends."""
        budget = self._cluster.devices[device].memory_budget_bytes
        return inf if budget is None else budget


def most_units(free: float, size: float, total: int) -> int:
    """How many units of `size` bytes fit, `total` at most."""
    if size <= 0 or free >= size * total:
        return total
    return max(0, int(free / size))
