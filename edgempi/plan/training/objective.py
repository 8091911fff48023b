"""What a pipeline takes for one mini-batch, by formula: ours, and the published one as reference.

Ours: the first microbatch's way through all stages, forward and back, and at the slowest place (a stage, or the link
between two) the other microbatches, and there the sum of the gradients. For equal stages without communication that is
(M + P - 1) (f + b), the time of 1F1B.

The published one is Asteroid's (MobiCom 2024, equations 4-6 and 11), on which PAC's planner builds: stages and the
links between them are steps, and all are aligned to the dominant one, which has the fewest bubbles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgempi.plan.apportion import Span
from edgempi.plan.training.actions import classic_depths, spaced_depths
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.network import Group, Network

Depths = Callable[[int], tuple[int, ...]]
"""From a number of stages, how many microbatches may be under way at each."""
DEPTHS: dict[str, Depths] = {"classic": classic_depths, "spaced": spaced_depths}


@dataclass(frozen=True)
class Part:
    """One stage: its layers, its devices, and how many rows of a microbatch each of them takes."""

    layers: Span
    devices: Group
    rows: tuple[int, ...]


@dataclass(frozen=True)
class PipelineStep:
    """A stage or the link after it, for one microbatch: seconds forward, backward, and of the sum at the end."""

    forward_s: float
    backward_s: float
    reduce_s: float = 0.0

    @property
    def both_s(self) -> float:
        """Forward and backward."""
        return self.forward_s + self.backward_s


def pipeline_steps(parts: Sequence[Part], costs: Costs, network: Network) -> list[PipelineStep]:
    """Stages and the links between them, in turns."""
    steps = []
    for place, part in enumerate(parts):
        shares = list(zip(part.devices, part.rows, strict=True))
        forward = max(costs.forward(device, part.layers).seconds(rows) for device, rows in shares)
        backward = max(costs.backward(device, part.layers).seconds(rows) for device, rows in shares)
        steps.append(
            PipelineStep(forward, backward, network.all_reduce_s(part.devices, costs.trained_bytes(part.layers)))
        )
        if place + 1 < len(parts):
            after, border = parts[place + 1], costs.layers[part.layers[1] - 1]
            rows = sum(part.rows)
            there = network.handover_s(part.devices, after.devices, rows * border.forward)
            steps.append(PipelineStep(there, network.handover_s(after.devices, part.devices, rows * border.backward)))
    return steps


def pipeline_s(parts: Sequence[Part], costs: Costs, network: Network, microbatches: int) -> float:
    """Seconds of a mini-batch by our formula; a stage takes the slowest of its devices, forward and backward."""
    steps = pipeline_steps(parts, costs, network)
    way, rest = 0.0, 0.0
    for place, step in enumerate(steps):
        if place % 2:
            way += step.both_s
            # A link carries both directions at once.
            rest = max(rest, (microbatches - 1) * max(step.forward_s, step.backward_s))
        else:
            part = parts[place // 2]
            seconds = stage_s(part, costs)
            way += seconds
            rest = max(rest, (microbatches - 1) * seconds + step.reduce_s)
    return way + rest


def stage_s(part: Part, costs: Costs) -> float:
    """Seconds of a microbatch at a stage, forward and backward: of its slowest device."""
    shares = zip(part.devices, part.rows, strict=True)
    return max(costs.both(device, part.layers).seconds(rows) for device, rows in shares)


def paper_objective(steps: Sequence[PipelineStep], microbatches: int) -> float:
    """Seconds of a mini-batch by the published formula.

    Args:
        steps: stages and the links between them, in turns (see `pipeline_steps`).
        microbatches: M.
    """
    before = [sum(step.both_s for step in steps[:place]) for place in range(len(steps))]
    dominant = max(range(len(steps)), key=lambda place: microbatches * steps[place].both_s + before[place])
    total = 0.0
    for place, step in enumerate(steps):
        waiting = sum(earlier.forward_s for earlier in steps[:place])
        execution = microbatches * steps[dominant].both_s + before[dominant] - before[place]
        total = max(total, waiting + execution + step.reduce_s)
    return total
