"""What a rank does for a cell, one function per kind; rank 0's return value is what the test sees."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgempi.comm import World
from edgempi.inference.greedy import generate
from edgempi.inference.runner import Runner
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.models.weights import TORCH_DTYPES, bytes_to_read
from edgempi.ops.linear import PLAIN, Route, pick_route
from edgempi.parallel.batch import Batch
from edgempi.parallel.outputs import Output, collect
from edgempi.plan.share import device_share, holdings
from edgempi.plan.spec import ModelSpec
from models.zoo import FAMILIES, VARIANTS, inputs
from mpi.cell import GREEDY_ROWS, GREEDY_TOKENS, INPUTS, NEW_TOKENS, Cell, program_of
from mpi.mutations import mutated

HEAVY = ("transformers", "tokenizers", "huggingface_hub", "hydra", "omegaconf")
MODELS = {model.name: model for model in (*FAMILIES, *VARIANTS)}
PACKING_RANKS = 2
"""Up to this many ranks linears take the fastest route; packing the weights of every cell costs most of a run."""
fastest: Callable[[torch.dtype], Route] = cache(pick_route)


class Subject:
    """A cell's model, ready to run on this rank.

    Args:
        world: all ranks.
        cell: what to measure.
        root: the oracle's folder.
    """

    def __init__(self, world: World, cell: Cell, root: Path) -> None:
        self.world, self.cell = world, cell
        self.folder = root / cell.checkpoint
        self.spec = _spec(self.folder)
        self.program = program_of(cell, self.spec)
        self._runners: list[Runner] = []

    @property
    def expected(self) -> dict[str, Tensor]:
        """What transformers says."""
        return _expected(self.folder)

    def runner(self) -> Runner:
        """A loaded model."""
        packing = self.world.size <= PACKING_RANKS
        route = fastest(TORCH_DTYPES[self.cell.weight_dtype]) if packing else PLAIN
        self._runners.append(Runner(self.world, self.program, self.spec, self.folder / "weights", route))
        return self._runners[-1]

    def close(self) -> None:
        """Give back what the runners took: a job of hundreds of cells would run out of communicators."""
        for runner in self._runners:
            runner.close()

    def batch(self, name: str) -> tuple[Batch, Tensor | None]:
        """One of `INPUTS`, and which positions of the outputs count (None: all)."""
        model = MODELS[self.cell.model]
        found = inputs(model, *INPUTS[name])
        padding = found.get("attention_mask")
        padding = None if padding is None else padding.bool()
        if self.spec.enc is None:
            return Batch(dec_ids=found["input_ids"], dec_padding=padding), padding
        batch = Batch(enc_ids=found["input_ids"], enc_padding=padding, dec_ids=found.get("decoder_input_ids"))
        return batch, None if model.two_stacks else padding


def parity(subject: Subject) -> dict[str, float]:
    """The largest difference of each output of each input, as a share of the output's largest magnitude."""
    found = {}
    with mutated(subject.cell.mutation):
        runner = subject.runner()
        for name in INPUTS:
            batch, real = subject.batch(name)
            for key, got in runner.outputs(batch).items():
                found[f"{name} {key}"] = difference(got, subject.expected[f"{name}/{key}"], real)
    return found


def hidden(subject: Subject) -> dict[str, float]:
    """The same for the residual stream after every unit."""
    runner, found = subject.runner(), {}
    names = _hidden_states(subject.spec)
    for name in INPUTS:
        batch, real = subject.batch(name)
        B, S = batch.ids(subject.spec.last).shape
        shape = (B, S, subject.spec.stacks[subject.spec.last].width)
        seen: dict[str, Output] = {}

        def observe(unit: str, x: Tensor, seen=seen, shape=shape) -> None:
            layout = subject.program.prefill.stage_of(subject.world.rank).layout(*shape)
            seen[unit] = Output((0, shape[0]), x, layout, shape)

        runner.forward(batch, observe=observe)
        for unit, got in collect(subject.world, [seen], [0]).items():
            if unit in names:
                found[f"{name} {unit}"] = difference(got, subject.expected[f"{name}/hidden/{names[unit]}"], real)
    return found


def greedy(subject: Subject) -> dict[str, Any]:
    """The tokens that were written and those that should have been, by rows."""
    subject.spec = replace(subject.spec, stop_tokens=())
    runner, found = subject.runner(), {}
    for rows in GREEDY_ROWS:
        prompts = inputs(MODELS[subject.cell.model], rows, GREEDY_TOKENS, False)["input_ids"]
        written = generate(runner, prompts, NEW_TOKENS).tolist()
        every = subject.world.gather_json(written)
        found[f"{rows} rows"] = {"ranks": every, "expected": subject.expected[f"greedy/{rows}"].tolist()}
    return found


def traffic(subject: Subject) -> list[dict[str, int]] | None:
    """Bytes sent by unit, of each rank, in a pass over `2x13`."""
    runner = subject.runner()
    batch, _ = subject.batch("2x13")
    subject.world.barrier()
    subject.world.traffic.reset()
    runner.forward(batch)
    return subject.world.gather_json(dict(subject.world.traffic.bytes_sent))


def reading(subject: Subject) -> list[dict[str, int]] | None:
    """Bytes read while loading, of each rank: what the kernel counted, and what the share names."""
    subject.runner()  # first uses import modules, and so read files
    start = _bytes_read()
    before = _bytes_read()
    runner = subject.runner()
    counted = _bytes_read() - before - (before - start)  # less what asking costs
    share = device_share(subject.program.prefill, subject.spec, subject.world.rank)
    held = holdings(share, subject.spec).values()
    with Checkpoint(subject.folder / "weights") as checkpoint:
        named = bytes_to_read(checkpoint, family_named(subject.spec.family), held)
        headers = checkpoint.header_bytes
    told = runner.data_bytes_read + runner.header_bytes_read
    return subject.world.gather_json({"counted": counted, "named": named, "headers": headers, "told": told})


def imports(subject: Subject) -> list[list[str]] | None:
    """Which of the heavy packages each rank has imported after a run."""
    runner = subject.runner()
    runner.outputs(subject.batch("1x7")[0])
    return subject.world.gather_json([name for name in HEAVY if name in sys.modules])


def difference(got: Tensor, expected: Tensor, real: Tensor | None) -> float:
    """The largest difference as a share of the largest magnitude, where `real` (B, S) says the positions count."""
    if expected.dim() == 2:  # transformers drops the token dimension of one token's outputs
        expected = expected[:, None]
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if real is not None and expected.shape[:2] == real.shape:
        got, expected = got[real], expected[real]
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _hidden_states(spec: ModelSpec) -> dict[str, int]:
    """Which of transformers' hidden states stands after a unit; its last one has passed the final norm."""
    name, layers = spec.last, spec.stacks[spec.last].layers
    units = {f"{name}.embed": 0, **{f"{name}.{i}": i + 1 for i in range(layers)}}
    if spec.stacks[name].final_norm:
        del units[f"{name}.{layers - 1}"]
        units[f"{name}.norm"] = layers
    return units


def _bytes_read() -> int:
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@cache
def _spec(folder: Path) -> ModelSpec:
    return ModelSpec.from_dict(json.loads((folder / "spec.json").read_text()))


@cache
def _expected(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "expected.safetensors")


MEASURES = {measure.__name__: measure for measure in (parity, hidden, greedy, traffic, reading, imports)}
