"""A schedule on measured devices and links, as discrete events: when is the mini-batch done, and who waited.

Every device works through its list on one clock. A message is posted and costs its device no time; it takes the
sender's uplink and the receiver's downlink for its bits, first posted first served, and its latency adds to the arrival
alone. The sum of a bucket begins when its last device has its gradients, and takes the ways of all of them for as long
as a ring takes: 2 (n - 1) / n of its bytes over the slowest link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from edgempi.cluster.profile import ClusterProfile
from edgempi.plan.apportion import length
from edgempi.plan.training.actions import Backward, Forward, Receive, Reduce, Schedule, Send, Step
from edgempi.plan.training.buckets import Bucket
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.network import Network
from edgempi.plan.training.validate import in_flight


@dataclass(frozen=True)
class Bar:
    """What a device did from when to when, in seconds: a row of a picture.

    `kind` is forward, backward, step, send or reduce; the last two stand beside what the device computes meanwhile.
    """

    device: int
    start_s: float
    stop_s: float
    kind: str
    microbatch: int | None


@dataclass(frozen=True)
class Simulated:
    """A mini-batch as simulated.

    Attributes:
        step_s: from its first action to the last device's end.
        bars: what happened, in the order of starting.
        busy_s: how long each device computed.
        in_flight: the most microbatches that each had under way.
    """

    step_s: float
    bars: tuple[Bar, ...]
    busy_s: Mapping[int, float]
    in_flight: Mapping[int, int]

    def idle_s(self, device: int) -> float:
        """How long a device did not compute."""
        return self.step_s - self.busy_s[device]


def simulate(schedule: Schedule, costs: Costs, cluster: ClusterProfile) -> Simulated:
    """Simulate a schedule that `check_schedule` would accept."""
    return _Run(schedule, costs, Network.of(cluster)).run()


_ARRIVE, _POST, _SUM = range(3)
_Event = tuple[float, int, int, tuple[int, ...], tuple[object, ...]]
"""(time, order among equals, kind, devices, message or bucket)."""


class _Run:
    def __init__(self, schedule: Schedule, costs: Costs, network: Network) -> None:
        self._schedule, self._costs, self._network = schedule, costs, network
        self._now = dict.fromkeys(schedule, 0.0)
        self._place = dict.fromkeys(schedule, 0)
        self._up: dict[int, float] = defaultdict(float)
        self._down: dict[int, float] = defaultdict(float)
        self._here: dict[tuple[object, ...], float] = {}
        self._begun: dict[str, list[float]] = defaultdict(list)
        self._awaits: dict[int, tuple[object, ...]] = {}
        self._bars: list[Bar] = []
        self._busy = dict.fromkeys(schedule, 0.0)
        self._events: list[_Event] = []
        self._order = 0

    def run(self) -> Simulated:
        for device in self._schedule:
            self._advance(device)
        while self._events:
            time, _, kind, devices, what = heappop(self._events)
            if kind == _POST:
                self._carry(time, devices, what)
            elif kind == _SUM:
                self._sum(time, devices, what)
            else:
                self._here[what] = time
                for device in devices:
                    if self._awaits.get(device) == what:
                        del self._awaits[device]
                        self._advance(device)
        return Simulated(
            max(self._now.values(), default=0.0),
            tuple(sorted(self._bars, key=lambda bar: (bar.start_s, bar.device))),
            self._busy,
            {device: in_flight(actions) for device, actions in self._schedule.items()},
        )

    def _advance(self, device: int) -> None:
        """Run a device's list up to the next thing that it must wait for."""
        actions = self._schedule[device]
        while self._place[device] < len(actions):
            action = actions[self._place[device]]
            if isinstance(action, Forward):
                seconds = self._costs.forward(device, action.layers).seconds(length(action.rows))
                self._compute(device, seconds, "forward", action.microbatch)
            elif isinstance(action, Backward):
                seconds = self._costs.backward(device, action.layers).seconds(length(action.rows))
                self._compute(device, seconds, "backward", action.microbatch)
            elif isinstance(action, Send):
                key = (device, action.peer, action.cargo, action.microbatch, action.rows, action.nbytes)
                self._push(self._now[device], _POST, (device, action.peer), key)
            elif isinstance(action, Receive):
                key = (action.peer, device, action.cargo, action.microbatch, action.rows, action.nbytes)
                if not self._arrived(device, key):
                    return
            elif isinstance(action, Reduce):
                self._begin(self._now[device], action.bucket)
            else:
                if not all(self._arrived(device, (bucket.name,)) for bucket in self._own(device)):
                    return
                self._step(device, action)
            self._place[device] += 1

    def _own(self, device: int) -> list[Bucket]:
        return [action.bucket for action in self._schedule[device] if isinstance(action, Reduce)]

    def _arrived(self, device: int, key: tuple[object, ...]) -> bool:
        """Whether something is here, and if so not before its time; otherwise the device waits for it."""
        if key not in self._here:
            self._awaits[device] = key
            return False
        self._now[device] = max(self._now[device], self._here[key])
        return True

    def _compute(self, device: int, seconds: float, kind: str, microbatch: int | None) -> None:
        start = self._now[device]
        self._now[device] += seconds
        self._busy[device] += seconds
        if seconds:
            self._bars.append(Bar(device, start, start + seconds, kind, microbatch))

    def _step(self, device: int, action: Step) -> None:
        self._compute(device, self._costs.update_s(device, action.layers), "step", None)

    def _begin(self, time: float, bucket: Bucket) -> None:
        begun = self._begun[bucket.name]
        begun.append(time)
        if len(begun) == len(bucket.devices):
            self._push(max(begun), _SUM, bucket.devices, (bucket.name, bucket.nbytes))

    def _carry(self, time: float, devices: tuple[int, ...], what: tuple[object, ...]) -> None:
        source, target = devices
        _, _, _, microbatch, _, nbytes = what
        assert isinstance(nbytes, int)
        assert isinstance(microbatch, int)
        link = self._network.link(source, target)
        start = max(time, self._up[source], self._down[target])
        stop = start + link.seconds(nbytes) - (link.latency_s if nbytes else 0.0)
        self._up[source] = self._down[target] = stop
        if stop > start:
            self._bars.append(Bar(source, start, stop, "send", microbatch))
        self._push(stop + (link.latency_s if nbytes else 0.0), _ARRIVE, (target,), what)

    def _sum(self, time: float, devices: tuple[int, ...], what: tuple[object, ...]) -> None:
        name, nbytes = what
        assert isinstance(nbytes, int)
        start = max(time, *(max(self._up[device], self._down[device]) for device in devices))
        stop = start + self._network.all_reduce_s(devices, nbytes)
        for device in devices:
            self._up[device] = self._down[device] = stop
            if stop > start:
                self._bars.append(Bar(device, start, stop, "reduce", None))
        self._push(stop, _ARRIVE, devices, (name,))

    def _push(self, time: float, kind: int, devices: tuple[int, ...], what: tuple[object, ...]) -> None:
        self._order += 1
        heappush(self._events, (time, self._order, kind, devices, what))
