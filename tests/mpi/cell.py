"""What the ranks are asked to measure: one cell is one model under one way of sharing, and one pytest item.

All cells of one rank count are measured by one mpirun (`lab.py`), so that a launch is paid once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.plan.plan import Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec

SHARES = {"even": (1, 1, 1, 1, 1), "uneven": (3, 1, 2, 1, 2), "zero": (2, 0, 1, 0, 1)}
"""Speeds by rank, cut to the ranks at hand."""

INPUTS = {"1x7": (1, 7, False), "1x1": (1, 1, False), "3x13 padded": (3, 13, True), "2x13": (2, 13, False)}
"""What every parity cell runs: (rows, tokens, padded)."""
GREEDY_ROWS, GREEDY_TOKENS, NEW_TOKENS = (1, 3), 7, 9


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        kind: the function of `measures.py` that takes it.
        model: of the zoo.
        way: a preset, `pipeline`, or presets of consecutive stages: `hybrid|data`.
        shares: of `SHARES`.
        ranks: how many.
        file: how the checkpoint is stored: a dtype, `/sharded` after it where it is several files.
        decode: the mode that stands for hybrid while decoding.
        mutation: of `mutations.py`: a mistake put in on purpose.
        chunks: weights of the chunks of a prompt, `3,1,0,2`; empty: the prompt is one.
    """

    kind: str
    model: str
    way: str
    shares: str
    ranks: int
    file: str = "float32"
    weight_dtype: str = "fp32"
    wire_dtype: str = "fp32"
    microbatches: int = 1
    column_blocks: int = 1
    overlap: str = "blocking"
    subtiles: int = 1
    decode: str = "tensor"
    mutation: str = ""
    chunks: str = ""

    def __str__(self) -> str:
        unusual = (f for f in fields(self)[5:] if getattr(self, f.name) != f.default)
        named = [f"{f.name}={getattr(self, f.name)}" for f in unusual]
        return "-".join([self.model, self.way, self.shares, str(self.ranks), *named])

    @property
    def checkpoint(self) -> str:
        """The checkpoint that it reads."""
        return f"{self.model}@{self.file}"


def program_of(cell: Cell, spec: ModelSpec) -> Program:
    """The program that a user would get for the cell."""
    speeds = [float(speed) for speed in SHARES[cell.shares][: cell.ranks]]
    if cell.way == "pipeline":  # stages beyond the layers stay idle
        layers = sum(stack.layers for stack in spec.stacks.values())
        speeds = [speed if rank < layers else 0.0 for rank, speed in enumerate(speeds)]
    modes = ["single"] if cell.way == "pipeline" else cell.way.split("|")
    parallel = ParallelConfig(
        stages=_devices(cell.way, cell.ranks) if len(modes) > 1 else None,
        pipeline=cell.way == "pipeline",
        modes=[Sharing(mode) for mode in modes],
        decode=Sharing(cell.decode),
        microbatches=cell.microbatches,
    )
    planner = PlannerConfig(name=PlannerName.proportional, speeds=speeds)
    chunks = tuple(float(weight) for weight in cell.chunks.split(",") if weight)
    forms = Forms(cell.weight_dtype, cell.wire_dtype, cell.overlap, cell.subtiles, cell.column_blocks, chunks)
    return plan_program(spec, speeds, parallel, planner, forms)


def _devices(way: str, ranks: int) -> list[list[int]]:
    """Who works in the two stages of a mixed plan: ranks neither in order nor in equal numbers."""
    every = list(range(ranks))
    first = {"hybrid|data": [0, 1], "tensor|sequence": [2, 1], "sequence|hybrid": [0]}[way]
    return [first, [rank for rank in reversed(every) if rank not in first]]
