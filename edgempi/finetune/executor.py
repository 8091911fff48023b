"""Forward and backward passes of a mini-batch over all devices: runs the schedules of a training plan.

Gradients are those of the loss summed over all rows of all devices, divided by the targets of the whole mini-batch,
so devices with unequal rows weigh what they should. Nothing depends on when messages come: which rows are put
together, and in which order sums are taken, is fixed; so are the bits.

Source: 1F1B with a flush per mini-batch (PipeDream, SOSP 2019); PAC (arXiv 2408.10746) for the first epoch's hybrid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgempi.comm import Group, World
from edgempi.comm.wire import FP32, Wire
from edgempi.finetune.gradients import Devices, Gradients
from edgempi.finetune.minibatch import Keep, MiniBatch, ReaderOf, RowsOf, Seat, StepResult, Trunk
from edgempi.finetune.transfers import Border
from edgempi.finetune.turns import only_forward, turns
from edgempi.plan.plan import Plan
from edgempi.plan.training.actions import Action, Schedule, microbatch_spans, schedule
from edgempi.plan.training.buckets import buckets
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.validate import check_schedule

BUCKET_BYTES = 2**22


class Executor:
    """Runs a training plan on this rank.

    Collective: every rank of the world makes one, with the same arguments but `trunk`.

    Args:
        world: all ranks.
        plan: stages of mode `data` or `single`.
        costs: what the planner knows of the layers.
        trunk: this device's units; a rank that has none in the plan gives one without.
        depths: how many microbatches may be under way at each stage that has layers.
        rows: of a mini-batch as a rule; its schedule is checked now, that of another number when it first comes.
        bucket_bytes: gradients are summed in parts of at least so many bytes.
        wire: the form in which states and their gradients travel. Gradients of parameters are never rounded.

    Raises:
        UserError: the plan gives no valid schedule.
        RuntimeError: the trunk trains other tensors than the planner counted.
    """

    def __init__(
        self,
        world: World,
        plan: Plan,
        costs: Costs,
        trunk: Trunk,
        depths: Sequence[int],
        rows: int,
        bucket_bytes: int = BUCKET_BYTES,
        wire: Wire = FP32,
    ) -> None:
        self._rank, self._plan, self._costs = world.rank, plan, costs
        self._depths, self._bucket_bytes = tuple(depths), bucket_bytes
        self._schedules: dict[int, Schedule] = {}
        self._actions(rows)
        reduced = buckets(plan, costs, bucket_bytes)
        self._everyone = world.group(0)
        self._groups = _groups(world, {bucket.devices for listed in reduced.values() for bucket in listed})
        before, after = _borders(plan, trunk, world.rank)
        gradients = Gradients(trunk.trained, costs, reduced.get(world.rank, ()), self._groups, self._poll)
        self._seat = Seat(trunk, before, after, self._everyone.post, wire, gradients)

    def step(
        self, rows: int, rows_of: RowsOf, targets: int, read: ReaderOf | None = None, keep: Keep | None = None
    ) -> StepResult:
        """Forward and backward of one mini-batch; afterwards every trained tensor's `.grad` is the whole one.

        That is the gradient of the loss summed over all rows, divided by `targets`, equal to the last bit on all
        devices that hold the tensor. The optimizer is not stepped.

        Collective: every rank, same rows and targets.

        Args:
            rows: of the mini-batch.
            rows_of: the rows at some places of it, also at places that are other devices'.
            targets: what the rows of the whole mini-batch count in the mean loss.
            read: where the backbone's activations are cached: gives them for the rows of a pass. The backbone then
                does not run, and its states do not cross.
            keep: is given what is to be cached.

        Raises:
            StuckError: a wait has passed the world's bound; its text names the ranks that were awaited.
        """
        self._seat.gradients.clear()
        with torch.enable_grad():
            run = MiniBatch(self._seat, rows_of, read, keep, 1 / targets if targets else 0.0)
            return run.through(turns(self._actions(rows)))

    def evaluate(
        self, rows: int, rows_of: RowsOf, read: ReaderOf | None = None, keep: Keep | None = None
    ) -> StepResult:
        """Forward passes alone; arguments and result are those of `step`. Collective: every rank."""
        with torch.no_grad():
            run = MiniBatch(self._seat, rows_of, read, keep, None)
            return run.through(turns(only_forward(self._actions(rows))))

    def close(self) -> None:
        """Give back the communicators and the hooks; every rank must call."""
        self._seat.gradients.close()
        for group in self._groups.values():
            group.close()
        self._everyone.close()

    def _actions(self, rows: int) -> tuple[Action, ...]:
        """What this device does for so many rows; the schedule is checked when it is made."""
        if rows not in self._schedules:
            made = schedule(self._plan, self._costs, rows, self._depths, self._bucket_bytes)
            working = [stage for stage in self._plan.stages if stage.units]
            depths = {d: depth for stage, depth in zip(working, self._depths, strict=True) for d in stage.devices}
            check_schedule(made, microbatch_spans(rows, self._plan.microbatches), depths)
            self._schedules[rows] = made
        return self._schedules[rows].get(self._rank, ())

    def _poll(self) -> None:
        self._seat.poll()


def _groups(world: World, wanted: set[Devices]) -> dict[Devices, Group]:
    """The groups that this rank is in, of all that are wanted; every rank must call."""
    found = {}
    for devices in sorted(wanted):
        within = world.rank in devices
        group = world.group(int(within), devices.index(world.rank) if within else None)
        if within:
            found[devices] = group
        else:
            group.close()
    return found


def _borders(plan: Plan, trunk: Trunk, rank: int) -> tuple[Border | None, Border | None]:
    """The borders of a rank's stage, to the one before and the one after."""
    working = [stage for stage in plan.stages if stage.units]
    place = next((i for i, stage in enumerate(working) if rank in stage.devices), len(working))
    starts: list[str | None] = [None, *(stage.units[0] for stage in working[1:]), None, None]
    before, after = (None if unit is None else Border(trunk.spec, trunk.tuning, unit) for unit in starts[place:][:2])
    return before, after
