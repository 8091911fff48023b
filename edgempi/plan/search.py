"""Trying plans: what each would take, whether it fits, and what became of the ways of sharing that lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from edgempi.cluster.profile import ClusterProfile
from edgempi.config.schema import Sharing
from edgempi.plan.latency import Latency, predict_latency
from edgempi.plan.memory import shortage
from edgempi.plan.plan import Plan, with_modes
from edgempi.plan.planners import Forms
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload

Vectors = Mapping[str, tuple[int, ...]]
"""Shares by what they count, each a number of units per device (or per chunk)."""

CLEARLY = 0.998
"""What part of the time of a plan another one must take to be preferred: less would follow the model's own noise."""
FEW = 3
"""Up to so many devices, units are tried between every pair of them."""


@dataclass(frozen=True)
class Draft:
    """A plan in the making: a way of sharing whose vectors can still change.

    Attributes:
        vectors: the shares.
        grains: by vector, in multiples of how many units they move.
        forms: dtypes, and how communication is driven.
        build: makes the plan.
    """

    vectors: Vectors
    grains: Mapping[str, int]
    forms: Forms
    build: Callable[[Vectors, Forms], Plan]

    @property
    def plan(self) -> Plan:
        """The plan as it stands."""
        return self.build(self.vectors, self.forms)


class Score(NamedTuple):
    """How good a plan is."""

    seconds: float
    """What the whole request takes; infinite where the plan does not fit."""
    missing_bytes: int
    """What devices lack in memory, together."""

    def beats(self, other: Score) -> bool:
        """Whether it is clearly faster, or fits where the other does not, or is nearer to fitting."""
        if inf in (self.seconds, other.seconds):
            return self < other
        return self.seconds < other.seconds * CLEARLY


@dataclass(frozen=True)
class Tried:
    """The best of the plans of one way of sharing over the same devices."""

    name: str
    plan: Plan
    score: Score
    latency: Latency | None = None
    device: str = ""
    """The one that lacks most memory, where the plan does not fit."""
    lacks_bytes: int = 0
    """How much it lacks."""

    @property
    def fits(self) -> bool:
        """Whether every device has memory for its share."""
        return self.latency is not None


class Search:
    """Tries plans and remembers the best of each way.

    Args:
        spec: the model.
        work: the request to be fast at: one prefill, and the steps that write its new tokens.
        cluster: measured.
        decode: what replaces `hybrid` while decoding.
    """

    def __init__(self, spec: ModelSpec, work: Workload, cluster: ClusterProfile, decode: Sharing | None) -> None:
        self.spec, self.work, self.cluster = spec, work, cluster
        self._decode = decode
        self._budgets = [device.memory_budget_bytes for device in cluster.devices]
        self.tried: dict[str, Tried] = {}
        self.evaluations = 0
        """How many plans were simulated."""

    def score(self, plan: Plan) -> Score:
        """Try a plan."""
        found = self.trial(plan)
        known = self.tried.get(found.name)
        if known is None or found.score.beats(known.score):
            self.tried[found.name] = found
        return found.score

    @property
    def ranking(self) -> list[Tried]:
        """The ways that were tried, fastest first, then those that do not fit, closest first."""
        return sorted(self.tried.values(), key=lambda tried: tried.score)

    def refine(self, draft: Draft, most: int) -> Draft:
        """Move units between devices while that makes the request faster, or the plan fit better where it does not.

        Args:
            draft: to start from.
            most: plans to try at most.
        """
        best, tries = self.score(draft.plan), most
        steps = {what: _first_step(draft, what) for what in draft.vectors}
        while tries > 0:
            improved = False
            for what in draft.vectors:
                for moved in self._moves(draft, what, steps[what]):
                    score, tries = self.score(moved.plan), tries - 1
                    if score.beats(best):
                        draft, best, improved = moved, score, True
                    if tries <= 0:
                        return draft
            if not improved:
                if all(steps[what] == draft.grains[what] for what in steps):
                    return draft
                steps = {what: max(draft.grains[what], _half(step, draft.grains[what])) for what, step in steps.items()}
        return draft

    def _moves(self, draft: Draft, what: str, step: int) -> Iterator[Draft]:
        counts = draft.vectors[what]
        for giver, taker in self._pairs(draft, len(counts)):
            amount = min(step, counts[giver])
            if amount:
                moved = list(counts)
                moved[giver], moved[taker] = moved[giver] - amount, moved[taker] + amount
                yield replace(draft, vectors={**draft.vectors, what: tuple(moved)})

    def _pairs(self, draft: Draft, size: int) -> list[tuple[int, int]]:
        """Between which shares to move: all pairs of a few, else from who never waits to who waits most."""
        everyone = range(size)
        if size <= FEW:
            return [(a, b) for a in everyone for b in everyone if a != b]
        latency = self.tried[self.name(draft.plan)].latency
        group = max((stage.devices for stage in draft.plan.stages), key=len)
        if latency is None or len(group) != size:
            return [pair for a in range(size - 1) for pair in ((a, a + 1), (a + 1, a))]
        waits = sorted(everyone, key=lambda place: latency.devices[group[place]].exposed_s)
        return [(waits[0], waits[-1]), (waits[0], waits[-2]), (waits[1], waits[-1])]

    def name(self, plan: Plan) -> str:
        """A way of sharing and who takes part, as tables show it."""
        parts = []
        for stage in plan.stages:
            if stage.units:
                names = "+".join(self.cluster.devices[device].name for device in stage.devices)
                parts.append(f"{stage.modes.name} on {names}")
        if len(parts) > 1:
            parts = [part.removeprefix("single on ") for part in parts]
            cut = " in chunks" if plan.token_chunks else ""
            return "pipeline" + cut + " of " + " | ".join(parts)
        return parts[0]

    def trial(self, plan: Plan) -> Tried:
        """Try a plan without remembering it."""
        name = self.name(plan)
        lacking = shortage(plan, self.spec, self.work, self._budgets)
        if max(lacking) > 0:
            device = self.cluster.devices[lacking.index(max(lacking))].name
            missing = sum(lacks for lacks in lacking if lacks > 0)
            return Tried(name, plan, Score(inf, missing), None, device, max(lacking))
        self.evaluations += 1
        latency = predict_latency(plan, self.spec, self.work, self.cluster)
        return Tried(name, plan, Score(latency.total_s + self._writing_s(plan), 0), latency)

    def _writing_s(self, plan: Plan) -> float:
        """The decode steps after the first token, each taken as long as one halfway through."""
        steps = self.work.new_tokens - 1 if self.work.writes(self.spec) else 0
        if steps < 1:
            return 0.0
        if self._decode is not None:
            plan = with_modes(plan, "hybrid", self._decode.value)
        past = self.work.tokens + steps // 2
        return steps * predict_latency(plan, self.spec, replace(self.work, tokens=1), self.cluster, past).total_s


def _first_step(draft: Draft, what: str) -> int:
    """Half of all units where few devices share them, so that one move can leave a device out; less for many."""
    counts, grain = draft.vectors[what], draft.grains[what]
    return max(grain, _half(sum(counts) // (1 if len(counts) <= FEW else 4), grain))


def _half(step: int, grain: int) -> int:
    return step // 2 // grain * grain


def best_of(drafts: Sequence[tuple[Score, Draft]], count: int) -> list[Draft]:
    """The fastest drafts, ties in the order of trying; the nearest to fitting where none does."""
    return [draft for _, draft in sorted(drafts, key=lambda pair: pair[0])[:count]]
