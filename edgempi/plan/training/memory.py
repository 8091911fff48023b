"""The memory of a device that trains a stage, by what it is for.

PAC (arXiv 2408.10746), after Asteroid (MobiCom 2024): weights, gradients, optimizer state, and the activations of as
many microbatches as are under way at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgempi.plan.apportion import Span
from edgempi.plan.memory import RUNTIME_BYTES
from edgempi.plan.training.costs import Costs


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one device above its import baseline, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Stored for the backward passes of all microbatches under way, and of the tensors that pass."""
    buffers: int
    """Of the microbatch that arrives while another one is at work, and of its gradient."""
    runtime: int = RUNTIME_BYTES

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers + self.runtime

    def slides_accounting(self) -> tuple[int, int, int]:
        """(weights, activations with optimizer state, gradients), as PAC's memory table counts them."""
        return (self.weights, self.activations + self.optimizer, self.gradients)


def stage_memory(costs: Costs, layers: Span, rows: int, depth: int) -> TrainingMemory:
    """The memory that layers take on a device.

    Args:
        costs: the layers' bytes.
        layers: those that it trains; none: it stays idle.
        rows: its rows of the largest microbatch.
        depth: microbatches under way at once.
    """
    if layers[0] == layers[1]:
        return TrainingMemory(0, 0, 0, 0, 0, 0)
    _, stored, passing = memory_line(costs, layers)
    trained, buffers = costs.trained_bytes(layers), _buffers(costs, layers)
    weights = costs.frozen_bytes(layers) + trained
    return TrainingMemory(
        weights=weights,
        gradients=trained,
        optimizer=costs.optimizer_copies * trained,
        activations=rows * (depth * stored + passing - buffers),
        buffers=rows * buffers,
    )


def memory_line(costs: Costs, layers: Span) -> tuple[int, int, int]:
    """The peak as a line over rows: bytes whatever the rows, of each row under way, and of each row at work."""
    run = costs.layers[slice(*layers)]
    trained = costs.trained_bytes(layers)
    fixed = costs.frozen_bytes(layers) + trained * (2 + costs.optimizer_copies) + RUNTIME_BYTES
    passing = max((layer.workspace for layer in run), default=0) + _buffers(costs, layers)
    return fixed, sum(layer.stored for layer in run), passing


def _buffers(costs: Costs, layers: Span) -> int:
    """Bytes of what arrives from both neighbours, of one row."""
    start, stop = layers
    before = costs.layers[start - 1].forward if start else 0
    return before + (costs.layers[stop - 1].backward if stop < costs.size else 0)
