"""How long a pass takes under a plan, by simulating what each device computes, sends and waits for.

Within a stage devices run unit by unit on clocks of their own (`plan/schedule.py`, `plan/simulate.py`); layers of one
stack are alike, so a few are simulated. Stages work on different microbatches, or chunks of one prompt, at the same
time: a stage begins the next as soon as it has arrived and the device is done with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from edgempi.cluster.profile import ClusterProfile, Link
from edgempi.plan.apportion import Span, apportion, length
from edgempi.plan.flow import chunk_spans, due, ends_encoder, reads_whole_memory
from edgempi.plan.messages import ELEMENT_BYTES, handovers
from edgempi.plan.plan import Plan, Stage, Table
from edgempi.plan.schedule import UnitProgram, programs
from edgempi.plan.simulate import Ring, Spent
from edgempi.plan.spec import ModelSpec, is_layer, stack_of
from edgempi.plan.workload import Workload

BLOCKS = ("embedding", "attention", "connective", "mlp", "head", "handover")
"""What times are told apart by; a handover is what passes between stages."""


@dataclass(frozen=True)
class BlockTime:
    """One kind of block on one device, over all its layers, in seconds.

    Attributes:
        compute_s: products, the attention core, norms, and putting tensors into the wire's form and back.
        wire_s: how long the device's outgoing link is busy with it.
        exposed_s: how long the device waits.
    """

    block: str
    compute_s: float
    wire_s: float
    exposed_s: float


@dataclass(frozen=True)
class DeviceTime:
    """One device over a pass; `blocks` holds those that it works on."""

    blocks: tuple[BlockTime, ...]

    @property
    def compute_s(self) -> float:
        """Seconds of computing."""
        return sum(block.compute_s for block in self.blocks)

    @property
    def wire_s(self) -> float:
        """Seconds that its outgoing link is busy."""
        return sum(block.wire_s for block in self.blocks)

    @property
    def exposed_s(self) -> float:
        """Seconds of waiting, for messages and for devices that are behind."""
        return sum(block.exposed_s for block in self.blocks)


@dataclass(frozen=True)
class Latency:
    """A pass: `total_s` from the first device's begin to the last one's end, and what each device does (rank order)."""

    total_s: float
    devices: tuple[DeviceTime, ...]


def predict_latency(plan: Plan, spec: ModelSpec, work: Workload, profile: ClusterProfile, past: int = 0) -> Latency:
    """How long a pass takes.

    Args:
        plan: who does what.
        spec: the model.
        work: how much; its `tokens` is 1 for a decode step.
        profile: measured, its devices those of the plan in rank order.
        past: tokens that the cache holds already; above zero in a decode step.
    """
    return _Pass(plan, spec, work, profile, past).run()


class _Pass:
    """All microbatches and chunks on their way through the stages."""

    def __init__(self, plan: Plan, spec: ModelSpec, work: Workload, profile: ClusterProfile, past: int) -> None:
        self._plan, self._spec, self._work, self._profile, self._past = plan, spec, work, profile, past
        self._stages = due(plan, spec, past > 0)
        self._rings = [Ring(_ring_links(stage, profile), [0.0] * stage.size) for stage, _ in self._stages]
        self._made: dict[tuple[int, int, Span], list[UnitProgram]] = {}

    def run(self) -> Latency:
        chunks = chunk_spans(self._plan, self._work.tokens)
        one = self._work.writes(self._spec) or self._spec.head.select != "all"
        for rows in apportion(self._work.rows, [1.0] * min(self._plan.microbatches, self._work.rows)):
            for chunk in chunks:
                for index in range(len(self._stages)):
                    self._run_stage(index, rows, chunk, one, chunk == chunks[-1])
                    if index + 1 < len(self._stages):
                        self._hand_over(index, rows, chunk)
        total = max(now for ring in self._rings for now in ring.now) + self._token_s()
        spent = {d: s for (stage, _), ring in zip(self._stages, self._rings, strict=True)
                 for d, s in zip(stage.devices, ring.spent, strict=True)}  # fmt: skip
        return Latency(total, tuple(_device_time(spent.get(device, Spent())) for device in self._plan.devices))

    def _run_stage(self, index: int, rows: int, chunk: Span, one: bool, last: bool) -> None:
        stage, units = self._stages[index]
        ring = self._rings[index]
        key = (index, rows, chunk)
        if key not in self._made:
            self._made[key] = programs(self._plan, self._spec, stage, self._profile, rows, self._passing(chunk))
        devices = self._made[key]
        for unit, times in _runs(units):
            name, _, part = unit.partition(".")
            if unit == "head":
                if last or not one:
                    ring.run([device.head(one) for device in devices])
                continue
            if is_layer(unit):
                first = again = [device.layer(name) for device in devices]
                if times > 1 and any(device.waits for device in devices):
                    again = [device.layer(name) for device in devices]
                ring.repeat(first, again, times)
            elif part == "embed":
                ring.run([device.embedding(name) for device in devices])
            else:
                ring.run([device.norm(name) for device in devices])
            if ends_encoder(self._spec, unit) and reads_whole_memory(stage):
                ring.run([device.publish(name) for device in devices])
        if any(device.waits for device in devices):
            ring.run([device.end() for device in devices])

    def _passing(self, chunk: Span) -> dict[str, Span]:
        spans = {name: (0, self._work.of(self._spec, name)) for name in self._spec.stacks}
        return {**spans, self._spec.last: (self._past + chunk[0], self._past + chunk[1])}

    def _hand_over(self, index: int, rows: int, chunk: Span) -> None:
        (before, _), (after, units) = self._stages[index], self._stages[index + 1]
        work = replace(self._work, tokens=length(chunk))
        sender, receiver = self._rings[index], self._rings[index + 1]
        messages = handovers(self._plan, self._spec, before, after, units[0], rows, work, self._past > 0)
        for source, target, nbytes in messages:
            place, taker = before.position(source), after.position(target)
            link = self._profile.link(source, target)
            sender.now[place] += (encoding := self._recode_s(source, nbytes))
            sender.spent[place].compute["handover"] += encoding
            seconds = 8 * nbytes / link.bits_per_s
            sender.free[place] = max(sender.free[place], sender.now[place]) + seconds
            sender.spent[place].wire["handover"] += seconds
            receiver.wait_until(taker, sender.free[place] + link.latency_s, "handover")
            receiver.now[taker] += (decoding := self._recode_s(target, nbytes))
            receiver.spent[taker].compute["handover"] += decoding

    def _recode_s(self, device: int, nbytes: int) -> float:
        """Of putting a message into the wire's form, or back: half of what both take."""
        times = self._profile.devices[device].times
        codec = times.wire.get(self._plan.wire_dtype) if times else None
        return codec.seconds(nbytes / ELEMENT_BYTES[self._plan.wire_dtype]) / 2 if codec else 0.0

    def _token_s(self) -> float:
        """Of telling everyone the next token: the winners of the head's stage, then the token itself."""
        if not self._work.writes(self._spec):
            return 0.0
        stage = self._stages[-1][0]
        working = [device for other, _ in self._stages for device in other.devices]
        winners = [self._profile.link(a, b).latency_s for a in stage.devices for b in stage.devices if a != b]
        told = [self._profile.link(stage.devices[-1], d).latency_s for d in working if d not in stage.devices]
        split = stage.modes.head == Table.vocabulary and self._spec.head.vocabulary
        return (max(winners, default=0.0) if split else 0.0) + max(told, default=0.0)


def _ring_links(stage: Stage, profile: ClusterProfile) -> list[Link]:
    if stage.size == 1:
        return []
    return [profile.link(a, b) for a, b in zip(stage.devices, (*stage.devices[1:], stage.devices[0]), strict=True)]


def _runs(units: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Units in order, with the layers of one stack that follow each other as one and how many they are."""
    for key, group in groupby(units, lambda unit: stack_of(unit) if is_layer(unit) else unit + "!"):
        found = list(group)
        yield (found[-1], len(found)) if is_layer(found[-1]) else (key[:-1], 1)


def _device_time(spent: Spent) -> DeviceTime:
    rows = (BlockTime(b, *(kind.get(b, 0.0) for kind in spent.kinds)) for b in BLOCKS)
    return DeviceTime(tuple(row for row in rows if row.compute_s or row.wire_s or row.exposed_s))
