"""The planner that takes what is predicted to be fastest, over every way of sharing that edgempi knows.

Candidates are each device alone, groups of devices that share every layer (by heads and columns, by tokens, or block by
block one or the other), rows of a batch, pipelines with microbatches or with chunks of one prompt, pipelines of two
groups, and what the other planners give. Shares start balanced (`plan/drafts.py`), every candidate is simulated, and
the best few are tried in every allowed form and refined unit by unit against the simulation.

Galaxy (arXiv 2405.17245) plans for compute and weights alone; here links, waiting, embeddings, activations and the
runtime count as well, and a device may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from edgempi.cluster.profile import ClusterProfile
from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError
from edgempi.plan.drafts import COLUMNS_ONLY, Drafts
from edgempi.plan.galaxy import plan_galaxy
from edgempi.plan.memory import shortage
from edgempi.plan.messages import ELEMENT_BYTES
from edgempi.plan.pipes import Pipes
from edgempi.plan.plan import PRESETS, Block, Connective, Modes, Plan, Program
from edgempi.plan.planners import Forms, plan_program, program_of
from edgempi.plan.search import FEW, Draft, Score, Search, Tried, best_of
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload

GROUP_MODES: tuple[Modes, ...] = (
    PRESETS["hybrid"], PRESETS["tensor"], PRESETS["sequence"], PRESETS["heads"], COLUMNS_ONLY,
)  # fmt: skip
PARTS = (2, 4, 8)
"""Into how many chunks or microbatches a pass is cut, where that is tried."""
ALL_SUBSETS = 4
"""Up to so many devices every subset is tried; of more, the fastest ones and those with most memory."""
HOPEFUL = 0.9
"""Of the layers' time: tiled causal attention may leave out more than the whole one."""
FINALISTS, REFINEMENTS, ROUNDS = 3, 80, 3
"""How many drafts are refined, by how many plans each, and how often form and shares take turns, on a few devices."""
FINALISTS_OF_MANY, REFINEMENTS_OF_MANY, SUBTILES_OF_MANY = 1, 12, 2


EXACTNESS = ("fp32", "bf16", "int8")
NOT_ALL_REDUCED = "int8"
"""An all-reduce rounds the whole stream at every step, where token shards keep their own tokens: 1.2 % of the output's
norm on four devices (OPT-XL's width), where one per cent is what is allowed."""
WORTH_ROUNDING = 0.01
"""The share of time that a coarser form of travelling must save to be worth its rounding."""


@dataclass(frozen=True)
class Allowed:
    """What the user leaves open.

    Attributes:
        wires: forms in which activations may travel.
        overlaps: ways of driving communication: `blocking` and one other, or one of them.
        subtiles: into how many tiles a device's tokens may be cut.
        column_blocks: of plans that overlap, and of those that do not.
        decode: what replaces `hybrid` while decoding.
    """

    wires: tuple[str, ...] = ("fp32",)
    overlaps: tuple[str, ...] = ("ring", "blocking")
    subtiles: tuple[int, ...] = (2, 1, 4)
    column_blocks: tuple[int, int] = (4, 1)
    decode: Sharing | None = Sharing.tensor


@dataclass(frozen=True)
class Choice:
    """The plan that won, and what was tried.

    Attributes:
        program: checked.
        ranking: the best plan of each way, fastest first, then those that do not fit, closest first.
        evaluations: how many plans were simulated.
    """

    program: Program
    ranking: tuple[Tried, ...]
    evaluations: int


def plan_auto(spec: ModelSpec, work: Workload, cluster: ClusterProfile, weight_dtype: str, allowed: Allowed) -> Choice:
    """The fastest plan that fits.

    Args:
        spec: the model.
        work: the request to be fast at.
        cluster: measured, with weights of `weight_dtype`.
        weight_dtype: how weights are kept.
        allowed: what may be chosen.

    Raises:
        UserError: no way of sharing fits; says what is missing where, and what would fit.
    """
    search = Search(spec, work, cluster, allowed.decode)
    planner = _Auto(search, weight_dtype, allowed)
    planner.try_everything()
    ranking = search.ranking
    if not ranking or not ranking[0].fits:
        raise _nothing_fits(ranking, spec, work, cluster)
    chosen = _exact_enough(search, ranking[0], allowed.wires)
    program = program_of(chosen.plan, spec, allowed.decode)
    return Choice(program, (chosen, *ranking[1:]), search.evaluations)


def lightest(wires: Sequence[str]) -> str:
    """The form of travelling with the fewest bytes."""
    return min(wires, key=lambda wire: ELEMENT_BYTES[wire])


def _exact_enough(search: Search, fastest: Tried, wires: Sequence[str]) -> Tried:
    """The fastest plan, in the most exact form of travelling that costs it no more than `WORTH_ROUNDING`."""
    for wire in sorted(wires, key=EXACTNESS.index):
        exact = search.trial(replace(fastest.plan, wire_dtype=wire))
        if exact.fits and exact.score.seconds * (1 - WORTH_ROUNDING) <= fastest.score.seconds:
            return exact
    return fastest


class _Auto:
    """One search."""

    def __init__(self, search: Search, weight_dtype: str, allowed: Allowed) -> None:
        self._search, self._allowed = search, allowed
        self._spec, self._work, self._cluster = search.spec, search.work, search.cluster
        self._plain = Forms(
            weight_dtype=weight_dtype, wire_dtype=lightest(allowed.wires), overlap="blocking",
            column_blocks=allowed.column_blocks[1],
        )  # fmt: skip
        self._drafts = Drafts(self._spec, self._work, self._cluster, self._plain)
        self._pipes = Pipes(self._drafts, self._spec, self._work)
        self._scored: list[tuple[Score, Draft]] = []

    def try_everything(self) -> None:
        """Presets, then drafts, then the finalists in every form and refined."""
        few = self._cluster.size <= FEW
        for plan in self._presets():
            self._search.score(plan)
        for devices in self._subsets():
            if not few and self._least_s(devices) > min(tried.score.seconds for tried in self._search.tried.values()):
                continue
            for draft in self._all_drafts(devices):
                self._scored.append((self._search.score(draft.plan), draft))
        count, most = (FINALISTS, REFINEMENTS) if few else (FINALISTS_OF_MANY, REFINEMENTS_OF_MANY)
        for draft in best_of(self._scored, count):
            chosen = self._best_form(draft)
            for _ in range(ROUNDS if few else 1):
                refined = self._search.refine(chosen, most)
                if refined is chosen:
                    break
                chosen = self._best_form(refined)

    def _subsets(self) -> Iterator[list[int]]:
        """Groups of at least two devices, the largest first."""
        size = self._cluster.size
        if size <= ALL_SUBSETS:
            for count in range(size, 1, -1):
                yield from (list(devices) for devices in combinations(range(size), count))
            return
        by_memory = sorted(range(size), key=lambda device: -self._drafts.lent(device))
        found = []
        for count in range(size, 1, -1):
            found += [sorted(self._drafts.fastest[:count]), sorted(by_memory[:count])]
        for index, devices in enumerate(found):
            if devices not in found[:index]:
                yield devices

    def _least_s(self, devices: Sequence[int]) -> float:
        """What no plan of these devices can be faster than: they share all layers, and never wait."""
        return HOPEFUL / sum(1 / self._drafts.layer_s[device] for device in devices)

    def _all_drafts(self, devices: Sequence[int]) -> Iterator[Draft]:
        for modes in GROUP_MODES:
            yield from self._drafts.shared(devices, modes, self._first_forms(modes))
        if self._work.rows > 1:
            yield self._drafts.rows(devices)
        yield from self._pipes.over(devices, self._plain, 1, False)
        for parts in PARTS:
            if parts <= self._work.rows:
                yield from self._pipes.over(devices, self._plain, parts, False)
            if self._streams and parts <= self._work.tokens:
                yield from self._pipes.over(devices, self._plain, parts, True)

    @property
    def _streams(self) -> bool:
        """Whether chunks of one prompt may follow each other: no token sees a later one."""
        return self._spec.enc is None and all(stack.causal for stack in self._spec.stacks.values())

    def _first_forms(self, modes: Modes) -> Forms:
        return next(iter(self._forms(modes, [lightest(self._wires(modes))])))

    def _wires(self, modes: Modes) -> list[str]:
        """In what a group of these modes may send."""
        wires = [wire for wire in self._allowed.wires if wire != NOT_ALL_REDUCED]
        summed = modes.connective == Connective.replicated and Block.tensor in (modes.attention, modes.mlp)
        return wires if summed and wires else list(self._allowed.wires)

    def _forms(self, modes: Modes, wires: Sequence[str]) -> list[Forms]:
        """Every allowed form, the one that is usually best first."""
        overlaps = ["blocking"]
        if modes.connective == Connective.tokens and Block.tensor in (modes.attention, modes.mlp):
            overlaps = list(self._allowed.overlaps)
        found = []
        for wire in wires:
            for overlap in overlaps:
                blocks = self._allowed.column_blocks[overlap == "blocking"]
                cuts = self._subtiles if overlap != "blocking" else (1,)
                made = (
                    replace(self._plain, wire_dtype=wire, overlap=overlap, subtiles=cut, column_blocks=blocks)
                    for cut in cuts
                )
                found += list(made)
        return found

    @property
    def _subtiles(self) -> tuple[int, ...]:
        """Many devices have small tiles as it is, and many tiles take long to simulate."""
        most = max(self._allowed.subtiles) if self._cluster.size <= ALL_SUBSETS else SUBTILES_OF_MANY
        return tuple(cut for cut in self._allowed.subtiles if cut <= most) or self._allowed.subtiles

    def _best_form(self, draft: Draft) -> Draft:
        """The draft in its best form: first how communication is driven, then in what it travels."""
        stage = max(draft.plan.stages, key=lambda stage: len(stage.units))
        driven = self._fastest(draft, self._forms(stage.modes, [draft.forms.wire_dtype]))
        return self._fastest(driven, [replace(driven.forms, wire_dtype=wire) for wire in self._wires(stage.modes)])

    def _fastest(self, draft: Draft, forms: Sequence[Forms]) -> Draft:
        if len(forms) == 1:
            return replace(draft, forms=forms[0])
        return min((replace(draft, forms=form) for form in forms), key=lambda one: self._search.score(one.plan))

    def _presets(self) -> Iterator[Plan]:
        """What the other planners give, and pipelines of two groups, as far as they can be made."""
        size, rows = self._cluster.size, self._work.rows
        for device in range(size):
            yield self._drafts.alone(device)
        if size == 1:
            return
        speeds = [1 / seconds for seconds in self._drafts.layer_s]
        ways = [Sharing.tensor, Sharing.sequence, Sharing.hybrid, Sharing.heads, *([Sharing.data] if rows > 1 else [])]
        parallels = [ParallelConfig(modes=[way]) for way in ways]
        for parallel in [*parallels, ParallelConfig(modes=[Sharing.single], pipeline=True)]:
            forms = self._first_forms(PRESETS[parallel.modes[0].value])
            for name in (PlannerName.even, PlannerName.proportional):
                yield from self._made(parallel, PlannerConfig(name=name), speeds, forms)
        for parallel in self._two_groups():
            forms = replace(self._first_forms(PRESETS["hybrid"]), token_chunks=tuple(parallel.token_chunks or ()))
            yield from self._made(parallel, PlannerConfig(), speeds, forms)
        try:
            yield plan_galaxy(self._spec, self._work, self._cluster, self._first_forms(PRESETS["hybrid"]))
        except UserError:  # the published planner gives up; others may not
            return

    def _two_groups(self) -> Iterator[ParallelConfig]:
        size, rows = self._cluster.size, self._work.rows
        if size <= 2:
            return
        for cut in range(1, size) if size <= ALL_SUBSETS else [size // 2]:
            groups = [list(range(cut)), list(range(cut, size))]
            modes = [Sharing.hybrid if len(group) > 1 else Sharing.single for group in groups]
            if rows > 1:
                yield ParallelConfig(stages=groups, modes=modes, microbatches=min(rows, PARTS[1]))
            if self._streams:
                for parts in PARTS[:2]:
                    yield ParallelConfig(stages=groups, modes=modes, token_chunks=[1.0] * parts)

    def _made(
        self, parallel: ParallelConfig, planner: PlannerConfig, speeds: Sequence[float], forms: Forms
    ) -> Iterator[Plan]:
        try:
            yield plan_program(self._spec, speeds, parallel, planner, forms).prefill
        except UserError:  # more stages than layers: not a way to share this model
            return


def _nothing_fits(ranking: Sequence[Tried], spec: ModelSpec, work: Workload, cluster: ClusterProfile) -> UserError:
    closest = ranking[0]
    budgets = [device.memory_budget_bytes for device in cluster.devices]
    short = {
        device: missing
        for device, missing in enumerate(shortage(closest.plan, spec, work, budgets)) if missing > 0
    }  # fmt: skip
    said = ", ".join(
        f"{cluster.devices[device].name} lacks {missing / 1e6:.0f} MB" for device, missing in short.items()
    )
    lent = ", ".join(f"{d.name} {d.memory_budget_bytes / 1e6:.0f} MB" for d in cluster.devices if d.memory_budget_bytes)
    more = f"lend {sum(short.values()) / 1e6:.0f} MB more there, or add a device that lends as much"
    halved = replace(closest.plan, weight_dtype="bf16")
    if closest.plan.weight_dtype != "bf16" and max(shortage(halved, spec, work, budgets)) <= 0:
        more = f"Set weights=bf16 (it fits then), or {more}"
    return UserError(
        "memory", value=f"no way of sharing fits; the closest is {closest.name}, where {said}",
        rule=f"weights, activations and the runtime fit into what the devices lend ({lent})",
        remedy=more[0].upper() + more[1:],
    )  # fmt: skip
