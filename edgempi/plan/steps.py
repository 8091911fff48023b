"""The steps of one device that units are put together from: products, tiles in overlapped rings, blocking rings.

Overlapped rings relay tiles and sums without a step of their own (`plan/simulate.py`), but moving their bytes takes the
processor from the computation. Blocking rings pass one tile a step and wait for both directions, for a send only where
it is too large to be buffered; the processor then has nothing else to do. A product that is cut into column blocks
reads nothing twice and pays its call once per block. Putting a tile into the wire's form takes half of what a profile
measured for both ways, taking it out and adding it the other half. Mirrors `comm/rings.py` and `comm/group.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from edgempi.cluster.mpirun import EAGER_BYTES
from edgempi.cluster.profile import ClusterProfile, DeviceTimes
from edgempi.plan.apportion import Span, apportion, length
from edgempi.plan.messages import tile_bytes
from edgempi.plan.plan import Connective, Plan, Stage
from edgempi.plan.share import DeviceShare, device_share
from edgempi.plan.simulate import Await, Compute, Drain, Give, Program, Send, Take, sent_before
from edgempi.plan.spec import ModelSpec
from edgempi.plan.tiles import Tile, cut

_cut = lru_cache(maxsize=16)(cut)
"""Every device of a stage asks for the same tiles."""


@dataclass
class Pending:
    """Own sums that are still under way, and what is to be done with each tile when its sum is here.

    Attributes:
        block: that they are the outcome of.
        keys: of their messages.
        tiles: the own ones.
        width: of the stream.
        work: in order, what runs of tiles go through.
        together: whether tiles that are here at the same time go through it as one, which saves reading weights again.
    """

    block: str
    keys: list[int]
    tiles: Sequence[Tile]
    width: int
    work: list[Callable[[Sequence[Tile]], None]] = field(default_factory=list)
    together: bool = False


class Steps:
    """Collects the steps of one device of a stage in one unit.

    Args:
        plan: who does what; `stage` is one of its.
        spec: the model.
        stage: whose device.
        profile: measured.
        device: which; every device of the stage must collect the same collectives in the same order.
        rows: of the pass (a microbatch).
        passing: by stack, the tokens of the pass; a chunk of a prompt or a decode step begins after zero.
    """

    def __init__(
        self,
        plan: Plan,
        spec: ModelSpec,
        stage: Stage,
        profile: ClusterProfile,
        device: int,
        rows: int,
        passing: Mapping[str, Span],
    ) -> None:
        times = profile.devices[device].times
        assert times is not None, "planners that need times refuse a profile without"
        self._times: DeviceTimes = times
        self._plan, self._spec, self._stage, self._passing = plan, spec, stage, passing
        self._share: DeviceShare = device_share(plan, spec, device)
        self._place, self._size = stage.position(device), stage.size
        self._rows = length(stage.row_spans(rows)[self._place])
        self._tokens_mode = stage.modes.connective == Connective.tokens and self._size > 1
        self._overlapped = plan.overlap != "blocking"
        self._codec = times.wire.get(plan.wire_dtype)
        self._keys = 0
        self._steps: Program = []
        self._block = ""
        self._products: dict[tuple[int, int, int], float] = {}
        self._pending: Pending | None = None

    @property
    def waits(self) -> bool:
        """Whether the next unit must await sums of the one before."""
        return self._pending is not None

    def _begin(self, block: str) -> None:
        self._steps, self._block, self._keys = [], block, 0
        if self._pending is not None:
            self._pending.keys = [sent_before(key) for key in self._pending.keys]

    def _collected(self, block: str, collect: Callable[[], None]) -> Program:
        """The steps that `collect` collects, beside those collected so far."""
        kept = self._steps, self._block
        self._steps, self._block = [], block
        collect()
        made, (self._steps, self._block) = self._steps, kept
        return made

    # Work.

    def _compute(self, seconds: float, polls: int = 1) -> None:
        """Compute, and poll communication so often: at the end, unless a product is cut into blocks of columns."""
        if seconds:
            self._steps.append(Compute(self._block, seconds, seconds / polls))

    def _product(self, tokens: int, outputs: int, inputs: int) -> None:
        key = (tokens, outputs, inputs)
        if key not in self._products:
            linear = self._times.linear
            seconds = linear.seconds(self._rows * tokens, outputs, inputs)
            if seconds and outputs >= self._plan.column_blocks:
                seconds += (self._plan.column_blocks - 1) * linear.call_s
            self._products[key] = seconds
        self._compute(self._products[key], self._plan.column_blocks if outputs >= self._plan.column_blocks else 1)

    def _element(self, elements: int) -> None:
        self._compute(self._times.connective.seconds(self._rows * elements))

    def _recode(self, elements: int, parts: float) -> None:
        """Encode (half) or decode and add (the other half) a tile of so many elements."""
        if self._codec is not None:
            self._compute(parts * self._codec.seconds(elements))

    # Overlapped rings.

    def _tiles(self, name: str) -> tuple[tuple[Tile, ...], ...]:
        return _cut(tuple(self._counts(name)), self._plan.subtiles)

    def _new_keys(self, tiles: Sequence[Sequence[Tile]]) -> int:
        """Message keys for a collective: this one, plus the first token of the tile."""
        base = self._keys
        self._keys += 1 + max((tile.span[1] for own in tiles for tile in own), default=0)
        return base

    def _start_gather(self, tiles: Sequence[Sequence[Tile]], width: int) -> int:
        """Send the own tiles, each as soon as its sum is here where sums are still under way."""
        base, block = self._new_keys(tiles), self._block

        def offer(run: Sequence[Tile]) -> None:
            self._block = block
            for tile in run:
                self._recode(self._rows * tile.tokens * width, 0.5)
                self._move(tile.tokens, width, 0.5)
                self._send(base + tile.span[0], tile.tokens, width, self._size - 1)

        if self._pending is None:
            offer(tiles[self._place])
        else:
            self._settle(offer)
        return base

    def _take(self, keys: Sequence[int], least: int, work: Callable[[int, int], None]) -> None:
        """Await messages in order, until `least` are taken; those that are here together go through `work` as one."""
        block = self._block
        if len(keys) > 1:
            made = cache(lambda first, stop: self._collected(block, lambda: work(first, stop)))
            self._steps.append(Take(block, keys, least, made))
        else:
            self._steps.append(Await(block, keys[0]))
            work(0, 1)

    def _take_in(
        self, base: int, run: Sequence[Tile], least: int, width: int, work: Callable[[Sequence[Tile]], None]
    ) -> None:
        """Await tiles of a gather, neighbours of one owner, and pass them on unless they are the next device's own."""
        passed_on = run[0].owner != (self._place + 1) % self._size

        def arrived(first: int, stop: int) -> None:
            for tile in run[first:stop]:
                self._recode(self._rows * tile.tokens * width, 0.5)
                self._move(tile.tokens, width, 1.0 if passed_on else 0.5)
            work(run[first:stop])

        self._take([base + tile.span[0] for tile in run], least, arrived)

    def _move(self, tokens: int, width: int, parts: float) -> None:
        """The processor's work to send (half) or receive (the other half) a tile under computation."""
        self._compute(parts * self._times.transport.seconds(self._bytes(tokens, width)))

    def _give(self, base: int, tile: Tile, width: int) -> None:
        """Hand an addend to the reduce-scatter; the first device of a tile's way starts it, the owner keeps it."""
        key = base + tile.span[0]
        if tile.owner == (self._place - 1) % self._size:
            self._recode(self._rows * tile.tokens * width, 0.5)
            self._move(tile.tokens, width, 0.5)
            self._send(key, tile.tokens, width)
        elif tile.owner != self._place:
            self._recode(self._rows * tile.tokens * width, 1.0)
            self._move(tile.tokens, width, 1.0)
            self._steps.append(Give(self._block, key, self._bytes(tile.tokens, width)))

    def _leave_sums(self, base: int, own: Sequence[Tile], width: int) -> None:
        """Let whoever needs the own sums await them."""
        if own:
            self._pending = Pending(self._block, [base + tile.span[0] for tile in own], own, width)

    def _settle(self, then: Callable[[Sequence[Tile]], None] | None = None) -> None:
        """Await the own sums that are under way, do what is left to do with each tile, and `then`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        block = self._block

        def arrived(first: int, stop: int) -> None:
            run = pending.tiles[first:stop]
            self._block = pending.block
            for tile in run:
                self._recode(self._rows * tile.tokens * pending.width, 0.5)
                self._move(tile.tokens, pending.width, 0.5)
            for work in (*pending.work, *([then] if then else [])):
                work(run)

        self._block = pending.block
        if pending.together:
            self._take(pending.keys, len(pending.keys), arrived)
        else:
            for index, key in enumerate(pending.keys):
                self._steps.append(Await(pending.block, key))
                arrived(index, index + 1)
        self._block = block

    # Blocking rings.

    def _gather(self, name: str, width: int, kinds: int = 1) -> None:
        """Gather the token shards; `kinds` tensors travel as one, below each other."""
        if self._tokens_mode:
            self._ring_gather(self._counts(name), width, kinds * self._rows)

    def _sum_out(self, name: str, width: int) -> None:
        if self._tokens_mode:
            self._ring_scatter(self._counts(name), width, self._rows)
        else:
            self._all_reduce(length(self._passing[name]), width, self._rows)

    def _all_reduce(self, tokens: int, width: int, rows: int) -> None:
        counts = apportion(tokens, [1.0] * self._size)
        self._ring_scatter(counts, width, rows)
        self._ring_gather(counts, width, rows)

    def _ring_gather(self, counts: Sequence[int], width: int, rows: int) -> None:
        base, self._keys = self._keys, self._keys + self._size
        self._recode(rows * counts[self._place] * width, 0.5)
        for step in range(self._size - 1):
            sent, received = (self._place - step) % self._size, (self._place - 1 - step) % self._size
            self._pass_on(base, counts, sent, received, width, rows)
        self._recode(rows * (sum(counts) - counts[self._place]) * width, 0.5)

    def _ring_scatter(self, counts: Sequence[int], width: int, rows: int) -> None:
        base, self._keys = self._keys, self._keys + self._size
        for step in range(1, self._size):
            sent, received = (self._place - step) % self._size, (self._place - 1 - step) % self._size
            self._recode(rows * counts[sent] * width, 0.5)
            self._pass_on(base, counts, sent, received, width, rows)
            self._recode(rows * counts[received] * width, 0.5)

    def _pass_on(self, base: int, counts: Sequence[int], sent: int, received: int, width: int, rows: int) -> None:
        nbytes = tile_bytes(self._plan.wire_dtype, rows * counts[sent], width)
        if nbytes:
            self._steps.append(Send(self._block, base + sent, nbytes))
        if counts[received]:
            self._steps.append(Await(self._block, base + received))
        if nbytes > EAGER_BYTES:
            self._steps.append(Drain(self._block))

    def _send(self, key: int, tokens: int, width: int, hops: int = 1) -> None:
        self._steps.append(Send(self._block, key, self._bytes(tokens, width), hops))

    def _bytes(self, tokens: int, width: int) -> int:
        return tile_bytes(self._plan.wire_dtype, self._rows * tokens, width)

    # Shares.

    def _own(self, name: str) -> Span:
        """The tokens of the pass that the device keeps between the blocks, counted in the whole sequence."""
        first, stop = self._passing[name]
        start, end = self._stage.token_spans(stop - first)[self._place]
        return (first + start, first + end)

    def _counts(self, name: str) -> list[int]:
        return [stop - start for start, stop in self._stage.token_spans(length(self._passing[name]))]
