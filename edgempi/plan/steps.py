"""The steps of one device that units are put together from: products, tiles in overlapped rings, blocking rings.

Overlapped rings relay tiles and sums without a step of their own (`plan/simulate.py`), but moving their bytes takes the
processor from the computation. Blocking rings pass one tile a step and wait for both directions; the processor then has
nothing else to do. A product that is cut into column blocks reads nothing twice and pays its call once per block.
Putting a tile into the wire's form takes half of what a profile measured for both ways, taking it out and adding it the
other half. Mirrors `comm/rings.py` and `comm/group.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgempi.cluster.profile import ClusterProfile, DeviceTimes
from edgempi.plan.apportion import Span, apportion, length
from edgempi.plan.messages import tile_bytes
from edgempi.plan.plan import Connective, Plan, Stage
from edgempi.plan.share import DeviceShare, device_share
from edgempi.plan.simulate import Await, Compute, Drain, Give, Program, Send
from edgempi.plan.spec import ModelSpec
from edgempi.plan.tiles import Tile, cut


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

    def _begin(self, block: str) -> None:
        self._steps, self._block, self._keys = [], block, 0

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
            self._compute(parts * self._codec.seconds(self._rows * elements))

    # Overlapped rings.

    def _tiles(self, name: str) -> tuple[tuple[Tile, ...], ...]:
        return cut(self._counts(name), self._plan.subtiles)

    def _new_keys(self, tiles: Sequence[Sequence[Tile]]) -> int:
        """Message keys for a collective: this one, plus the first token of the tile."""
        base = self._keys
        self._keys += 1 + max((tile.span[1] for own in tiles for tile in own), default=0)
        return base

    def _start_gather(self, tiles: Sequence[Sequence[Tile]], width: int) -> int:
        base = self._new_keys(tiles)
        for tile in tiles[self._place]:
            self._recode(tile.tokens * width, 0.5)
            self._move(tile.tokens, width, 0.5)
            self._send(base + tile.span[0], tile.tokens, width, self._size - 1)
        return base

    def _take(self, base: int, tile: Tile, width: int) -> None:
        """Await a tile; a gather passes it on, unless it is the next device's own."""
        self._steps.append(Await(self._block, base + tile.span[0]))
        self._recode(tile.tokens * width, 0.5)
        passed_on = tile.owner not in (self._place, (self._place + 1) % self._size)
        self._move(tile.tokens, width, 1.0 if passed_on else 0.5)

    def _move(self, tokens: int, width: int, parts: float) -> None:
        """The processor's work to send (half) or receive (the other half) a tile under computation."""
        self._compute(parts * self._times.transport.seconds(self._bytes(tokens, width)))

    def _give(self, base: int, tile: Tile, width: int) -> None:
        """Hand an addend to the reduce-scatter; the first device of a tile's way starts it, the owner keeps it."""
        key = base + tile.span[0]
        if tile.owner == (self._place - 1) % self._size:
            self._recode(tile.tokens * width, 0.5)
            self._move(tile.tokens, width, 0.5)
            self._send(key, tile.tokens, width)
        elif tile.owner != self._place:
            self._recode(tile.tokens * width, 1.0)
            self._move(tile.tokens, width, 1.0)
            self._steps.append(Give(self._block, key, self._bytes(tile.tokens, width)))

    def _finish_sums(self, base: int, tiles: Sequence[Sequence[Tile]], width: int) -> None:
        for tile in tiles[self._place]:
            self._take(base, tile, width)

    # Blocking rings.

    def _gather(self, name: str, width: int) -> None:
        if self._tokens_mode:
            self._ring_gather(self._counts(name), width, self._rows)

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
        self._recode(counts[self._place] * width, 0.5)
        for step in range(self._size - 1):
            sent, received = (self._place - step) % self._size, (self._place - 1 - step) % self._size
            self._pass_on(base, counts, sent, received, width, rows)
        self._recode((sum(counts) - counts[self._place]) * width, 0.5)

    def _ring_scatter(self, counts: Sequence[int], width: int, rows: int) -> None:
        base, self._keys = self._keys, self._keys + self._size
        for step in range(1, self._size):
            sent, received = (self._place - step) % self._size, (self._place - 1 - step) % self._size
            self._recode(counts[sent] * width, 0.5)
            self._pass_on(base, counts, sent, received, width, rows)
            self._recode(counts[received] * width, 0.5)

    def _pass_on(self, base: int, counts: Sequence[int], sent: int, received: int, width: int, rows: int) -> None:
        if counts[sent]:
            nbytes = tile_bytes(self._plan.wire_dtype, rows * counts[sent], width)
            self._steps.append(Send(self._block, base + sent, nbytes))
        if counts[received]:
            self._steps.append(Await(self._block, base + received))
        if counts[sent]:
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
