"""Whether a schedule can run: every rule it must keep, each broken one an error that says where.

Sends are nonblocking and receives wait, so what could stop a schedule is a receive whose message is never sent, or
devices that wait for each other in a circle. Both are found by running the lists without clocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence

from edgempi.errors import UserError
from edgempi.plan.apportion import Span
from edgempi.plan.training.actions import Action, Backward, Forward, Receive, Reduce, Schedule, Send, Step

REMEDY = "Make schedules with plan.training.actions.schedule"


def check_schedule(schedule: Schedule, batch: Sequence[Span], depths: Mapping[int, int]) -> None:
    """Check a schedule.

    Args:
        schedule: what every device does.
        batch: the rows of each microbatch.
        depths: how many microbatches each device may have under way.

    Raises:
        UserError: a message without its other half, or of other rows or bytes; messages of one kind that are received
            in another order than they are sent; rows that a stage does not take exactly once forward and once
            backward; more microbatches under way than allowed; a device that steps before its sums have begun or does
            anything after its step; a deadlock.
    """
    _check_messages(schedule)
    _check_rows(schedule, batch)
    for device, actions in schedule.items():
        _check_device(device, actions, depths[device])
    _check_progress(schedule)


def in_flight(actions: Sequence[Action]) -> int:
    """The most microbatches that a device has under way: forward is done, backward is not complete."""
    lowest = {action.microbatch: action.layers[0] for action in actions if isinstance(action, Forward)}
    under_way, most = 0, 0
    for action in actions:
        if isinstance(action, Forward):
            under_way += 1
            most = max(most, under_way)
        elif isinstance(action, Backward) and action.layers[0] == lowest.get(action.microbatch):
            under_way -= 1
    return most


def _check_messages(schedule: Schedule) -> None:
    sent, received = defaultdict(list), defaultdict(list)
    for device, actions in schedule.items():
        for action in actions:
            if isinstance(action, Send):
                sent[device, action.peer, action.cargo].append((action.microbatch, action.rows, action.nbytes))
            elif isinstance(action, Receive):
                received[action.peer, device, action.cargo].append((action.microbatch, action.rows, action.nbytes))
    for channel in sent.keys() | received.keys():
        if sent[channel] != received[channel]:
            source, target, cargo = channel
            odd = next(
                (pair for pair in zip(sent[channel], received[channel], strict=False) if pair[0] != pair[1]),
                (len(sent[channel]), len(received[channel])),
            )
            raise UserError(
                f"schedule, {cargo} from device {source} to {target}", value=f"sent {odd[0]}, received {odd[1]}",
                rule="each message (microbatch, rows, bytes) is received once, in the order of sending", remedy=REMEDY,
            )  # fmt: skip


def _check_rows(schedule: Schedule, batch: Sequence[Span]) -> None:
    steps = [action for actions in schedule.values() for action in actions if isinstance(action, Step)]
    taken: Counter[tuple[str, int, int, int]] = Counter()
    for actions in schedule.values():
        for action in actions:
            if isinstance(action, Forward | Backward):
                kind = type(action).__name__
                for layer in range(*action.layers):
                    taken.update((kind, layer, action.microbatch, row) for row in range(*action.rows))
    layers = {layer for step in steps for layer in range(*step.layers)}
    due = {
        (kind, layer, m, row)
        for kind in ("Forward", "Backward")
        for layer in layers
        for m, rows in enumerate(batch)
        for row in range(*rows)
    }
    odd = min((key for key in due | taken.keys() if taken[key] != (key in due)), default=None)
    if odd is not None:
        kind, layer, m, row = odd
        raise UserError(
            f"schedule, {kind.lower()} of microbatch {m} through layer {layer}", value=f"row {row} {taken[odd]} times",
            rule="every row of its microbatch passes each layer once", remedy=REMEDY,
        )  # fmt: skip


def _check_device(device: int, actions: Sequence[Action], depth: int) -> None:
    most = in_flight(actions)
    if most > depth:
        raise UserError(
            f"schedule of device {device}", value=f"{most} microbatches under way", rule=f"at most {depth}",
            remedy="Start backward passes earlier",
        )  # fmt: skip
    forwarded: set[int] = set()
    for action in actions:
        if isinstance(action, Forward):
            forwarded.add(action.microbatch)
        if isinstance(action, Backward) and action.microbatch not in forwarded:
            raise UserError(
                f"schedule of device {device}", value=f"backward of microbatch {action.microbatch} before its forward",
                rule="forward comes first", remedy=REMEDY,
            )  # fmt: skip
    if sum(isinstance(action, Step) for action in actions) != 1 or not isinstance(actions[-1], Step):
        raise UserError(
            f"schedule of device {device}", value="its last action is not its only step",
            rule="the optimizer works once, after everything else", remedy=REMEDY,
        )  # fmt: skip


def _check_progress(schedule: Schedule) -> None:
    """Run the lists without clocks until all are at their ends, or nothing moves."""
    place = dict.fromkeys(schedule, 0)
    posted: Counter[tuple[object, ...]] = Counter()
    begun: Counter[str] = Counter()
    left = deque(schedule)
    waiting: set[int] = set()
    while left:
        device = left.popleft()
        moved = False
        while place[device] < len(schedule[device]):
            action = schedule[device][place[device]]
            if isinstance(action, Receive):
                message = (action.peer, device, action.cargo, action.microbatch, action.rows)
                if not posted[message]:
                    break
                posted[message] -= 1
            elif isinstance(action, Send):
                posted[device, action.peer, action.cargo, action.microbatch, action.rows] += 1
            elif isinstance(action, Reduce):
                begun[action.bucket.name] += 1
            elif isinstance(action, Step):
                own = (done.bucket for done in schedule[device] if isinstance(done, Reduce))
                if any(begun[bucket.name] < len(bucket.devices) for bucket in own):
                    break
            place[device] += 1
            moved = True
        if place[device] < len(schedule[device]):
            left.append(device)
            waiting = set() if moved else waiting | {device}
        elif moved:
            waiting = set()
        if left and len(waiting) == len(left):
            raise _deadlock(schedule, place, sorted(waiting))


def _deadlock(schedule: Schedule, place: Mapping[int, int], waiting: Sequence[int]) -> UserError:
    said = []
    for device in waiting:
        action = schedule[device][place[device]]
        if isinstance(action, Receive):
            said.append(f"{device} waits for {action.cargo} of microbatch {action.microbatch} from {action.peer}")
        else:
            said.append(f"{device} waits for a sum")
    return UserError(
        "schedule", value="; ".join(said), rule="no devices wait for each other",
        remedy="Give earlier stages at least as many microbatches under way as later ones",
    )  # fmt: skip
