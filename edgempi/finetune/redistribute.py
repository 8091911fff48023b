"""Between the first epoch and the cached ones: what moves to whom, sample by sample and tensor by tensor.

`plan/training/redistribute.py` says which rows' layers and which parameters change hands; here they do. Cached samples
travel as the records that they are, to the bit, in chunks: what is in memory at a time is a chunk for each device that
this one sends to or receives from. The headers of a chunk's records are a message apart from their bodies, so that the
bodies, which are what the planner counts, are counted apart too.

Nothing is deleted before every device has all that it needs on its way to disk, so a crash in between loses nothing.

Source: PAC (arXiv 2408.10746), redistribution after the first epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.comm.post import Post
from edgempi.finetune.cache.store import ActivationCache
from edgempi.finetune.gradients import Trained, named
from edgempi.finetune.parcels import Inbound, Outbound
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs
from edgempi.plan.training.redistribute import ParameterMove, Redistribution, owners, redistribute

CHUNK_BYTES = 8 << 20
PARAMETERS = "parameters"
PARAMETER_TAG = 26


@dataclass(frozen=True)
class SampleMove:
    """Cached samples that go from one device to another, of each the layers that the cache calls so."""

    source: int
    target: int
    layers: tuple[str, ...]
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """What an epoch's cache needs to become that of the next ones.

    Attributes:
        moves: from device to device.
        keepers: for each of the epoch's rows in order, the device that has it afterwards; of a pipeline, its last
            stage's (see `pinned_order`).
        layers: what each device reads afterwards of its samples, as the cache calls it.
        samples: which they are, each once.
        nbytes: of all moves, as the planner counts rows that are as long as the workload's.
    """

    moves: tuple[SampleMove, ...]
    keepers: tuple[int, ...]
    layers: Mapping[int, tuple[str, ...]]
    samples: Mapping[int, tuple[int, ...]]
    nbytes: int


@dataclass(frozen=True)
class Moved:
    """One device's part.

    Attributes:
        body_bytes: of records that it sent, as the planner counts them; `cache` in the rank's counters.
        frame_bytes: of their headers, and of the notes of how long a chunk is; `cache frame` in the counters.
        sent: records.
        taken: records that found room.
        dropped: samples that it has no longer.
        missing: samples that it shall have, of which some layer is not there: lost before, or no room; they are to be
            computed again.
    """

    body_bytes: int
    frame_bytes: int
    sent: int
    taken: int
    dropped: int
    missing: tuple[int, ...]


def shift(first: Plan, second: Plan, costs: Costs, layers: Sequence[str], batches: Sequence[Sequence[int]]) -> Shift:
    """Which samples move between two plans. Pure: every rank works out the same.

    Args:
        first: under which the cache was filled.
        second: under which it will be read.
        costs: bytes of the layers, without the backbone or with it.
        layers: what the cache calls layers: units whose activations are cached.
        batches: the samples of each mini-batch of the first epoch, in order, as the cache calls them.
    """
    cached = set(layers)
    made: dict[int, Redistribution] = {}
    found: dict[tuple[int, int, tuple[str, ...]], dict[int, None]] = defaultdict(dict)
    needed: dict[int, dict[int, None]] = defaultdict(dict)
    read: dict[int, tuple[str, ...]] = {}
    keepers: list[int] = []
    nbytes = 0
    for batch in batches:
        rows = len(batch)
        if rows not in made:
            made[rows] = redistribute(first, second, costs, rows)
        for move in made[rows].cache:
            units = tuple(unit for unit in costs.units(move.layers) if unit in cached)
            found[move.source, move.target, units].update(dict.fromkeys(batch[row] for row in move.rows))
            nbytes += move.nbytes
        later = owners(second, costs, rows)
        place = {row: at for at, row in enumerate(made[rows].order)}
        for span, devices in later:
            for row, sample in enumerate(batch):
                device = devices[place[row]]
                needed[device][sample] = None
                read[device] = tuple(unit for unit in costs.units(span) if unit in cached)
        keepers += [later[-1][1][place[row]] for row in range(rows)]
    moves = (SampleMove(*key, tuple(samples)) for key, samples in found.items())
    return Shift(tuple(moves), tuple(keepers), read, {d: tuple(samples) for d, samples in needed.items()}, nbytes)


def move_cache(world: World, cache: ActivationCache, wanted: Shift, chunk_bytes: int = CHUNK_BYTES) -> Moved:
    """Send what others need, take what this device needs, and delete what it needs no longer.

    Collective: every rank of the world.

    Args:
        world: all ranks.
        cache: this device's.
        wanted: see `shift`.
        chunk_bytes: bodies are gathered to messages of at least so many bytes, where there are as many.

    Raises:
        StuckError: for as long as the world's bound nothing came, or nothing was taken.
        DamagedError: what came is no whole record of this cache's key.
    """
    group, rank = world.group(0), world.rank
    post = group.post
    sources = sorted({move.source for move in wanted.moves if move.target == rank})
    asked: dict[int, list[tuple[Sequence[str], Sequence[int]]]] = defaultdict(list)
    for move in wanted.moves:
        if move.source == rank:
            asked[move.target].append((move.layers, move.samples))
    outbound = {target: Outbound(post, target, cache, asked[target], chunk_bytes) for target in sorted(asked)}
    inbound = {source: Inbound(post, source, cache) for source in sources}
    _exchange(post, dict(outbound), dict(inbound))
    cache.flush()
    with world.patience(1 + wanted.nbytes / chunk_bytes):  # every chunk of others may take as long as the bound
        world.barrier()
    mine = wanted.samples.get(rank, ())
    others = {sample for samples in wanted.samples.values() for sample in samples} - set(mine)
    dropped = cache.delete(sorted(others))
    missing = cache.missing(mine, wanted.layers[rank]) if mine and wanted.layers[rank] else []
    group.close()
    return Moved(
        sum(one.body_bytes for one in outbound.values()), sum(one.frame_bytes for one in outbound.values()),
        sum(one.records for one in outbound.values()), sum(one.taken for one in inbound.values()),
        dropped, tuple(missing),
    )  # fmt: skip


def move_parameters(
    world: World,
    moves: Sequence[ParameterMove],
    costs: Costs,
    before: tuple[Trained, Mapping[str, Tensor]],
    after: Trained,
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """Bring trained parameters and what the optimizer keeps for them to where the second plan wants them.

    Collective: every rank of the world. Tensors travel one by one from where they lie to where they shall lie, so no
    memory is needed beside them; what a device had already is copied.

    Args:
        world: all ranks.
        moves: of `redistribute`.
        costs: of the planner.
        before: what this device trained, and what its optimizer kept, by `KIND.NAME`; zeros where a tensor is not
            there.
        after: what it will train; filled in place.
        kinds: what the optimizer keeps for every parameter, e.g. `exp_avg`; as many as `costs.optimizer_copies`.

    Returns:
        What the optimizer keeps for the tensors of `after`, by `KIND.NAME`.

    Raises:
        StuckError: a wait has passed the world's bound.
    """
    group, rank = world.group(0), world.rank
    post, (trained, state) = group.post, before
    kept = {f"{kind}.{name}": torch.zeros_like(x) for kind in kinds for name, x in after.tensors.items()}
    for name, tensor in after.tensors.items():
        own = trained.tensors.get(name)
        if own is not None:
            tensor.detach().copy_(own.detach())
        for kind in kinds:
            if f"{kind}.{name}" in state and own is not None:
                kept[f"{kind}.{name}"].copy_(state[f"{kind}.{name}"])
    arrivals = []
    with world.traffic.within(PARAMETERS):
        for move in moves:
            if move.target == rank:
                for name in named(after, costs, move.layers, move.tables):
                    for tensor in (after.tensors[name].detach(), *(kept[f"{kind}.{name}"] for kind in kinds)):
                        arrivals.append((move.source, post.receive(tensor, move.source, PARAMETER_TAG)))
        for move in moves:
            if move.source == rank:
                for name in named(trained, costs, move.layers, move.tables):
                    value = trained.tensors[name].detach()
                    others = (state.get(f"{kind}.{name}") for kind in kinds)
                    for tensor in (value, *(torch.zeros_like(value) if x is None else x for x in others)):
                        post.send(tensor.contiguous(), move.target, PARAMETER_TAG)
        for source, arrival in arrivals:
            if not arrival.here():
                post.wait(arrival.here, "the move", [source])
        group.drain()
    group.close()
    return kept


def _exchange(post: Post, outbound: dict[int, Outbound], inbound: dict[int, Inbound]) -> None:
    """Drive all parcels to their ends; a wait is bounded as long as nothing moves at all."""

    def advanced() -> bool:
        post.let_go()
        moved = False
        if outbound and post.idle:
            for target in [target for target, one in outbound.items() if not one.next()]:
                del outbound[target]
            moved = True
        for source, one in list(inbound.items()):
            moved |= one.poll()
            if one.ended:
                del inbound[source]
        return moved

    while outbound or inbound:
        if not advanced():
            with post.traffic.within("cache"):
                post.wait(advanced, "the move", [*inbound, *outbound])

    def gone() -> bool:
        post.let_go()
        return post.idle

    if not gone():
        with post.traffic.within("cache"):
            post.wait(gone, "the end of the move", [rank for rank in range(post.size) if rank != post.rank])
