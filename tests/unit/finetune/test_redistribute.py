"""Between two plans: each sample ends up where it is read, to the bit, and no more moves than the planner says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgempi.comm import StuckError, World
from edgempi.finetune.cache.found import Budget
from edgempi.finetune.cache.key import DTYPES, CacheKey
from edgempi.finetune.cache.record import header_bytes
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.orders import Homes, homes_of
from edgempi.finetune.redistribute import Moved, Shift, move_cache, move_parameters, shift
from edgempi.plan.training.redistribute import filled, owners, redistribute
from edgempi.plan.training.sizes import pieces
from unit.comm.threads import on_ranks
from unit.finetune.toys import SIDE, TOKENS, WIDTH, ToyTrunk, costs, plan, spec

MODEL = spec(2, 2)
LAYERS = tuple(unit for unit in MODEL.units if not unit.endswith(".norm"))
ROWS, BATCHES = 8, [[*range(8)], [*range(10, 18)], [20, 21, 22]]
SAMPLES = [sample for batch in BATCHES for sample in batch]
FIRST: dict[str, list[tuple[int, list[int], list[int]]]] = {
    "one stage": [(4, [0, 1, 2, 3], [1, 2, 1, 1])],
    "two stages": [(2, [0, 1], [1, 1]), (2, [2, 3], [1, 1])],
    "uneven": [(3, [3, 1], [3, 1]), (1, [0, 2], [1, 2])],
    "four stages": [(1, [0], []), (1, [1], []), (1, [2], []), (1, [3], [])],
}
SECOND: dict[str, list[tuple[int, list[int], list[int]]]] = {
    "data": [(4, [0, 1, 2, 3], [1, 1, 1, 1])],
    "pipeline": [(1, [1, 2], [1, 1]), (3, [0, 3], [1, 1])],
}
ALONE: list[tuple[int, list[int], list[int]]] = [(4, [2], [])]


def _hidden(sample: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sample)
    return {unit: torch.randn(_tokens(unit), WIDTH, generator=generator) for unit in LAYERS}


def _tokens(unit: str) -> int:
    return TOKENS["dec" if unit == "head" else unit.partition(".")[0]]


def _key(dtype: str = "fp32") -> CacheKey:
    return CacheKey("m", "t", "p", (5, 3), LAYERS, WIDTH, dtype)


def _filled(world: World, root: Path, wanted: Any, counted: Any, dtype: str = "fp32") -> ActivationCache:
    """This rank's cache after the first epoch."""
    cache = ActivationCache(root / str(world.rank), _key(dtype), Budget(1 << 16))
    for batch in BATCHES:
        for span, devices in owners(wanted, counted, len(batch)):
            units = [unit for unit in counted.units(span) if unit in LAYERS]
            for sample, device in zip(batch, devices, strict=True):
                if device == world.rank:
                    cache.put(sample, {unit: _hidden(sample)[unit] for unit in units})
    return cache


def _shifted(before: Any, after: Any, counted: Any, samples: Sequence[int] = SAMPLES) -> tuple[Shift, Homes]:
    """What moves after an epoch in the samples' order, and where they are read then."""
    parts = [samples[start : start + ROWS] for start in range(0, len(samples), ROWS)]
    held = [holding for part in parts for holding in filled(before, counted, len(part))]
    homes = homes_of(held, after, counted, ROWS, np.arange(len(samples)))
    return shift(held, homes.keepers, after, counted, LAYERS, samples), homes


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_each_sample_is_once_where_it_is_read(first: str, second: str, chunk_bytes: int, tmp_path: Path) -> None:
    before, after, counted = plan(MODEL, FIRST[first], 2), plan(MODEL, SECOND[second], 2), costs(MODEL, SIDE, 4)
    wanted, _ = _shifted(before, after, counted)

    def run(world: World) -> tuple[Moved, Counter[str], Counter[str], dict[int, dict[str, Tensor]]]:
        with torch.inference_mode(False), _filled(world, tmp_path, before, counted) as cache:
            world.traffic.reset()
            moved = move_cache(world, cache, wanted, chunk_bytes)
            held = {sample: cache.get(sample, wanted.layers[world.rank]).tensors() for sample in cache.samples()}
            sent = Counter({unit: world.traffic.bytes_sent[unit] for unit in ("cache", "cache frame")})
            return moved, sent, world.traffic.messages, held

    ranks = on_ranks(4, run)
    pure = [redistribute(before, after, counted, len(batch)) for batch in BATCHES]
    for rank, (moved, sent, _, _) in enumerate(ranks):
        planned = sum(m.nbytes for found in pure for m in found.cache if m.source == rank)
        assert (moved.body_bytes, moved.frame_bytes) == (sent["cache"], sent["cache frame"])
        assert moved.body_bytes == planned
        assert not moved.missing
    assert wanted.nbytes == sum(moved.body_bytes for moved, *_ in ranks)
    # Frames: a header for every record, 24 bytes for every chunk, and 24 at the end of every pair's.
    pairs = {(move.source, move.target) for move in wanted.moves}
    headers = sum(_headers(wanted, before, counted, source) for source in range(4))
    chunks = sum(messages["cache"] for _, _, messages, _ in ranks)
    assert sum(moved.frame_bytes for moved, *_ in ranks) == headers + 24 * (chunks + len(pairs))
    if chunk_bytes == 1:
        assert chunks == sum(moved.sent for moved, *_ in ranks)
    held = Counter((sample, unit) for _, _, _, found in ranks for sample, layers in found.items() for unit in layers)
    assert held == Counter({(sample, unit): 1 for batch in BATCHES for sample in batch for unit in LAYERS})
    for _, _, _, found in ranks:
        for sample, layers in found.items():
            assert all(torch.equal(x, _hidden(sample)[unit]) for unit, x in layers.items())


def _headers(wanted: Shift, before: Any, counted: Any, source: int) -> int:
    """Bytes of the headers of what a device sends: a record for each sample and move."""
    return sum(header_bytes(len(m.layers)) * len(m.samples) for m in wanted.moves if m.source == source)


def test_the_even_case_moves_what_the_paper_says() -> None:
    counted = costs(MODEL, SIDE, 4)
    whole = sum(layer.cache for layer in counted.layers) * ROWS
    for name, stages in (("two stages", 2), ("four stages", 4)):
        before = plan(MODEL, FIRST[name], 2)
        found, _ = _shifted(before, plan(MODEL, SECOND["data"], 1), counted, SAMPLES[:ROWS])
        lasts = {layers: counted.cache_bytes(layers) for layers, _ in owners(before, counted, ROWS)}
        # Stages of equal bytes would leave (P - 1) / P; of these, each device keeps two rows of its own stage.
        kept = sum(nbytes * ROWS // stages for nbytes in lasts.values())
        assert found.nbytes == whole - kept


def test_keepers_have_their_samples() -> None:
    before, after = plan(MODEL, FIRST["two stages"], 2), plan(MODEL, SECOND["data"], 1)
    found, homes = _shifted(before, after, costs(MODEL, SIDE, 4))
    for sample, (keeper,) in zip(SAMPLES, homes.keepers, strict=True):
        assert sample in found.samples[keeper]
    kept = Counter(keeper for (keeper,) in homes.keepers)
    assert kept == Counter({device: len(mine) for device, mine in found.samples.items()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_part_of_a_record_is_the_record_of_the_part(dtype: str, tmp_path: Path) -> None:
    key = CacheKey("m", "t", "p", (5, 3), LAYERS, WIDTH, dtype, factor=2, full=("head",))
    with ActivationCache(tmp_path, key, Budget(1 << 16)) as cache:
        cache.put(1, _hidden(1))
        for layers in (LAYERS[:1], ("enc.1", "head"), LAYERS):
            (part,) = cache.records([1], layers)
            header = cache.codec.check(part)
            assert header.layers == tuple(map(LAYERS.index, layers))
            found = cache.codec.decode(part, header, torch.float64)
            whole = cache.get(1).tensors(torch.float64)
            assert found.keys() == set(layers)
            assert all(torch.equal(x, whole[unit]) for unit, x in found.items())


def test_what_was_lost_before_is_named(tmp_path: Path) -> None:
    before, after, counted = plan(MODEL, FIRST["two stages"], 1), plan(MODEL, ALONE, 1), costs(MODEL, SIDE, 4)
    wanted, _ = _shifted(before, after, counted)

    def run(world: World) -> Moved:
        with torch.inference_mode(False), _filled(world, tmp_path, before, counted) as cache:
            cache.delete([11, 21])
            return move_cache(world, cache, wanted)

    ranks = on_ranks(4, run)
    assert [moved.missing for moved in ranks] == [(), (), (11, 21), ()]
    assert not any(moved.dropped for moved in ranks)  # of what somebody lacks nobody deletes anything


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    before, after, counted = plan(MODEL, FIRST["two stages"], 1), plan(MODEL, ALONE, 1), costs(MODEL, SIDE, 4)
    wanted, _ = _shifted(before, after, counted)

    def run(world: World) -> str:
        with torch.inference_mode(False), _filled(world, tmp_path, before, counted) as cache:
            if world.rank == 3:
                world.group(0)
                return ""
            with pytest.raises(StuckError) as stuck:
                move_cache(world, cache, wanted)
            return str(stuck.value)

    said = on_ranks(4, run, timeout_s=1.0)
    assert "rank 2 on" in said[2]
    assert "waits for rank 3 in the move" in said[2]


@pytest.mark.parametrize("second", ["data", "pipeline", "alone"])
@pytest.mark.parametrize("first", FIRST)
def test_parameters_follow_with_their_moments(first: str, second: str) -> None:
    before, after = plan(MODEL, FIRST[first], 1), plan(MODEL, {**SECOND, "alone": ALONE}[second], 1)
    counted, kinds = costs(MODEL, SIDE, 4), ("exp_avg", "exp_avg_sq")
    moves = redistribute(before, after, counted, ROWS).parameters

    def trunk(stages: Any, rank: int) -> ToyTrunk:
        units = next((stage.units for stage in stages.stages if rank in stage.devices), ())
        return ToyTrunk(MODEL, units, SIDE, torch.float32)

    def run(world: World) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
        with torch.inference_mode(False):
            old, new = trunk(before, world.rank), trunk(after, world.rank)
            with torch.no_grad():
                for name, tensor in old.trained.tensors.items():
                    tensor.copy_(_value(name, tensor))
            state = {f"{kind}.{n}": _value(kind + n, x) for kind in kinds for n, x in old.trained.tensors.items()}
            world.traffic.reset()
            kept = move_parameters(world, moves, counted, (old.trained, state), new.trained, kinds)
            return world.traffic.bytes_sent["parameters"], new.trained.tensors, kept

    ranks = on_ranks(4, run)
    for rank, (sent, tensors, kept) in enumerate(ranks):
        assert sent == sum(move.nbytes for move in moves if move.source == rank)
        assert all(torch.equal(tensor, _value(name, tensor)) for name, tensor in tensors.items())
        assert kept.keys() == {f"{kind}.{name}" for kind in kinds for name in tensors}
        for kind in kinds:
            assert all(torch.equal(kept[f"{kind}.{name}"], _value(kind + name, x)) for name, x in tensors.items())


def _value(name: str, like: Tensor) -> Tensor:
    return torch.full_like(like, float(sum(map(ord, name)))).detach()


def test_layers_are_those_of_the_pieces() -> None:
    """The units that the cache knows are those that the planner counts."""
    counted: Sequence[Any] = costs(MODEL, SIDE, 1).layers
    for run, layer in zip(pieces(MODEL), counted, strict=True):
        assert layer.cache == sum(4 * _tokens(unit) * WIDTH for unit in run if unit in LAYERS)
