"""Before the cached epochs: what moves to whom, sample by sample and tensor by tensor.

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
from edgempi.plan.apportion import Span
from edgempi.plan.plan import Plan
from edgempi.plan.training.costs import Costs, layer_spans
from edgempi.plan.training.redistribute import Holding, Keeper, ParameterMove, cache_moves, reads

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
    """What the devices' caches need to become those that a plan reads.

    Attributes:
        moves: from device to device.
        layers: what each device reads of its samples, as the cache calls it.
        samples: which they are, as the cache calls them, each once.
        nbytes: of all moves, as the planner counts rows that are as long as the workload's.
    """

    moves: tuple[SampleMove, ...]
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

    body_bytes: int = 0
    frame_bytes: int = 0
    sent: int = 0
    taken: int = 0
    dropped: int = 0
    missing: tuple[int, ...] = ()

    def then(self, later: Moved) -> Moved:
        """Both parts together; what is missing is missing after the later one."""
        return Moved(
            self.body_bytes + later.body_bytes, self.frame_bytes + later.frame_bytes, self.sent + later.sent,
            self.taken + later.taken, self.dropped + later.dropped, later.missing,
        )  # fmt: skip


def shift(
    held: Sequence[Holding], homes: Sequence[Keeper], plan: Plan, costs: Costs, layers: Sequence[str],
    ids: Sequence[int],
) -> Shift:  # fmt: skip
    """What moves so that each sample is where it is read. Pure: every rank works out the same.

    Args:
        held: who has what, of each sample by its number.
        homes: who reads it, one device of each stage of the plan.
        plan: under which it is read.
        costs: bytes of the layers' cache.
        layers: what the cache calls layers: units whose activations are cached.
        ids: what it calls the samples; equal ones are cached once.
    """
    cached = set(layers)

    def units(span: Span) -> tuple[str, ...]:
        return tuple(unit for unit in costs.units(span) if unit in cached)

    each = {(sample, keeper): holding for sample, keeper, holding in zip(ids, homes, held, strict=True)}
    samples = [sample for sample, _ in each]
    moves, nbytes = [], 0
    for move in cache_moves(list(each.values()), [keeper for _, keeper in each], reads(plan, costs), costs):
        moves.append(SampleMove(move.source, move.target, units(move.layers), tuple(samples[n] for n in move.rows)))
        nbytes += move.nbytes
    working = [(stage, span) for stage, span in zip(plan.stages, layer_spans(plan, costs), strict=True) if stage.units]
    needed: dict[int, dict[int, None]] = defaultdict(dict)
    for sample, keeper in each:
        for device in keeper:
            needed[device][sample] = None
    return Shift(
        tuple(moves), {device: units(span) for stage, span in working for device in stage.devices},
        {device: tuple(found) for device, found in needed.items()}, nbytes,
    )  # fmt: skip


def lacking(cache: ActivationCache, wanted: Shift, rank: int) -> tuple[int, ...]:
    """The samples that a device shall have, of which some layer that it reads is not there."""
    mine, layers = wanted.samples.get(rank, ()), wanted.layers.get(rank, ())
    return tuple(cache.missing(mine, layers)) if mine and layers else ()


def move_cache(world: World, cache: ActivationCache, wanted: Shift, chunk_bytes: int = CHUNK_BYTES) -> Moved:
    """Send what others need, take what this device needs, and delete what it needs no longer.

    Where some device has no room for all, nobody deletes anything.

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
    missing = lacking(cache, wanted, rank)
    with world.patience(1 + wanted.nbytes / chunk_bytes):  # every chunk of others may take as long as the bound
        short = any(world.all_gather_json(len(missing)))
    mine = set(wanted.samples.get(rank, ()))
    others = {sample for samples in wanted.samples.values() for sample in samples} - mine
    dropped = 0 if short else cache.delete(sorted(others))
    group.close()
    return Moved(
        sum(one.body_bytes for one in outbound.values()), sum(one.frame_bytes for one in outbound.values()),
        sum(one.records for one in outbound.values()), sum(one.taken for one in inbound.values()),
        dropped, missing,
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
