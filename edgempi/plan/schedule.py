"""What each device of a stage does, step by step, in one unit: the model of time that mirrors seams and blocks.

Overlapped hybrid blocks (Galaxy, arXiv 2405.17245, tile-based overlap, with the whole MLP per tile of rows):

    attention   QKV of the own tokens, then of each tile as it arrives; then for each tile its queries' core and output
                projection, given to the ring reduce-scatter, and last for the own tokens. Bidirectional attention needs
                all keys before the first query, causal attention of a tile the keys up to its end.
    MLP         up-projection of the own tokens; then for each tile as it arrives up and down, given; last the down-
                projection of the own tokens

Their own sums are not awaited at their end but tile by tile where the stream is read next, be it in the next unit: then
a tile goes through the connective block, and through an MLP that is whole on the own tokens, and leaves for the next
all-gather before the next tile is awaited. Tiles of one owner that are here at the same time go through products
together: each reads its weights anew.

`icollective` is taken to last as long as `ring`: the same bytes on the same links. What steps cost is `plan/steps.py`.
Left out: what rotary positions, masks and copies take beside the fits of a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgempi.cluster.profile import ClusterProfile
from edgempi.plan.apportion import Span, length
from edgempi.plan.plan import Block, Plan, Stage, Table
from edgempi.plan.simulate import Program
from edgempi.plan.spec import ModelSpec, Stack
from edgempi.plan.steps import Steps
from edgempi.plan.tiles import Tile, arrivals


def programs(
    plan: Plan, spec: ModelSpec, stage: Stage, profile: ClusterProfile, rows: int, passing: Mapping[str, Span]
) -> list[UnitProgram]:
    """One maker of programs per device of a stage.

    Args:
        plan: who does what; `stage` is one of its.
        spec: the model.
        stage: whose devices.
        profile: measured.
        rows: of the pass (a microbatch).
        passing: by stack, the tokens of the pass; a chunk of a prompt or a decode step begins after zero.
    """
    return [UnitProgram(plan, spec, stage, profile, device, rows, passing) for device in stage.devices]


class UnitProgram(Steps):
    """Makes the program of one device for any unit of its stage; every device of the stage must make the same units."""

    def embedding(self, name: str) -> Program:
        """Of the unit that turns the ids of stack `name` into its stream."""
        self._begin("embedding")
        self._settle()
        stack = self._spec.stacks[name]
        table, total = stack.embedding, length(self._passing[name])
        own = length(self._own(name))
        if self._stage.modes.embedding == Table.vocabulary and self._size > 1:
            self._element(total * table.width)
            self._sum_out(name, table.width)
        if table.width != stack.width:
            self._product(own, stack.width, table.width)
        self._element(own * stack.width)
        return self._steps

    def layer(self, name: str) -> Program:
        """Of a layer of a stack: its layers are alike, but for sums of the one before that the first need not await."""
        self._begin("attention")
        stack = self._spec.stacks[name]
        self._attention(name, stack, name)
        self._connective(name, stack)
        if stack.cross:
            self._block = "attention"
            self._attention(name, stack, "enc")
            self._connective(name, stack)
        self._block = "mlp"
        self._mlp(name, stack)
        self._connective(name, stack)
        return self._steps

    def norm(self, name: str) -> Program:
        """Of a stack's final norm."""
        self._begin("connective")
        self._connective(name, self._spec.stacks[name])
        self._settle()
        return self._steps

    def end(self) -> Program:
        """Of what a stage still awaits after its last unit."""
        self._begin("handover")
        self._settle()
        return self._steps

    def publish(self, name: str) -> Program:
        """Of the gathering of the encoder's output where decoder layers read all of it."""
        self._begin("handover")
        self._settle()
        self._gather(name, self._spec.stacks[name].width)
        return self._steps

    def head(self, one_token: bool) -> Program:
        """Of the head; `one_token`: each row's one token is asked for."""
        self._begin("head")
        self._settle()
        head, name = self._spec.head, self._spec.last
        width = self._spec.stacks[name].width
        one = one_token or head.select != "all"
        split = self._stage.modes.head == Table.vocabulary and head.vocabulary
        if one and self._tokens_mode:
            self._all_reduce(self._rows, width, rows=1)
        tokens = 1 if one else length(self._own(name))
        if head.dense:
            self._product(tokens, width, width)
        if head.project_width:
            self._product(tokens, head.project_width, width)
        if split and not one:
            self._gather(name, head.project_width or width)
            tokens = length(self._passing[name])
        self._product(tokens, length(self._share.head), head.project_width or width)
        return self._steps

    # Blocks.

    def _attention(self, name: str, stack: Stack, source: str) -> None:
        """Self-attention, or cross-attention to the encoder's output where `source` is another stack."""
        heads, kv = length(self._share.heads[name]), length(self._share.kv_heads[name])
        size, crossing = stack.head_dim, source != name
        qkv = heads * size if crossing else (heads + 2 * kv) * size
        keys = self._passing[source][1]
        causal = stack.causal and not crossing
        windowed = any(window is not None and window < keys for window in stack.windows)

        def core(span: Span, seen: int) -> None:
            """The core of the queries `span`, which are given `seen` keys."""
            start, stop = span
            pairs = float((stop - start) * seen)
            if causal and not windowed and start == 0 and stop == seen:
                pairs *= self._times.causal_share
            self._compute(self._times.attention.seconds(self._rows * heads * pairs * size))

        def leave(tokens: int) -> None:
            self._product(tokens, stack.width, heads * size)

        split = self._stage.modes.attention == Block.tensor
        if crossing:
            self._settle()
        if crossing and (split or not self._tokens_mode) and self._passing[name][0] == 0:
            self._product(keys, 2 * kv * size, stack.width)
        if split and self._tokens_mode and self._overlapped and not crossing:
            self._tiled_attention(name, stack, qkv, causal, core, leave)
            return
        self._settle()
        if self._tokens_mode and not split:
            own = self._own(name)
            self._product(length(own), qkv, stack.width)
            if crossing and self._passing[name][0] == 0:
                self._product(length(self._own(source)), 2 * kv * size, stack.width)
            if not crossing or self._passing[name][0] == 0:
                self._gather(source, stack.kv_heads * size, kinds=2)
            core(own, own[1] if causal else keys)
            leave(length(own))
            return
        if split and self._tokens_mode:
            self._gather(name, stack.width)
        total = self._passing[name]
        self._product(length(total), qkv, stack.width)
        core(total, keys)
        leave(length(total))
        if split and self._size > 1:
            self._sum_out(name, stack.width)

    def _tiled_attention(
        self,
        name: str,
        stack: Stack,
        qkv: int,
        causal: bool,
        core: Callable[[Span, int], None],
        leave: Callable[[int], None],
    ) -> None:
        tiles, first = self._tiles(name), self._passing[name][0]
        keys = self._passing[name][1]
        base = self._start_gather(tiles, stack.width)
        self._product(sum(tile.tokens for tile in tiles[self._place]), qkv, stack.width)
        sums = self._new_keys(tiles)
        taken = {owner: 0 for owner, own in enumerate(tiles) if own and owner != self._place}

        def project(run: Sequence[Tile]) -> None:
            self._product(sum(tile.tokens for tile in run), qkv, stack.width)

        def needs(stop: int) -> None:
            """Take in the tiles that queries up to `stop` look at."""
            for owner in sorted(taken, key=lambda owner: (self._place - owner) % self._size):
                least = sum(not causal or tile.span[0] < stop for tile in tiles[owner])
                if least > taken[owner]:
                    taken[owner] = least
                    self._take_in(base, tiles[owner], least, stack.width, project)

        def from_core(start: int, stop: int) -> None:
            core((first + start, first + stop), first + stop if causal else keys)
            leave(stop - start)

        for tile in arrivals(tiles, self._place):
            needs(tile.span[1])
            from_core(*tile.span)
            self._give(sums, tile, stack.width)
        needs(self._passing[name][1])
        from_core(*self._stage.token_spans(length(self._passing[name]))[self._place])
        self._leave_sums(sums, tiles[self._place], stack.width)

    def _mlp(self, name: str, stack: Stack) -> None:
        columns = length(self._share.mlp_columns[name])
        up = columns * (2 if stack.gated else 1)
        split = self._stage.modes.mlp == Block.tensor and self._size > 1
        if split and self._tokens_mode and self._overlapped:
            tiles = self._tiles(name)
            base = self._start_gather(tiles, stack.width)
            self._product(sum(tile.tokens for tile in tiles[self._place]), up, stack.width)
            sums = self._new_keys(tiles)

            def through(run: Sequence[Tile]) -> None:
                tokens = sum(tile.tokens for tile in run)
                self._product(tokens, up, stack.width)
                self._product(tokens, stack.width, columns)
                for tile in run:
                    self._give(sums, tile, stack.width)

            for step in range(1, self._size):
                if owned := tiles[(self._place - step) % self._size]:
                    self._take_in(base, owned, len(owned), stack.width, through)
            self._product(sum(tile.tokens for tile in tiles[self._place]), stack.width, columns)
            self._leave_sums(sums, tiles[self._place], stack.width)
            return
        if self._pending is not None and not split:

            def alone(run: Sequence[Tile]) -> None:
                self._block = "mlp"
                tokens = sum(tile.tokens for tile in run)
                self._product(tokens, up, stack.width)
                self._product(tokens, stack.width, columns)

            self._pending.work.append(alone)
            self._pending.together = True
            return
        self._settle()
        if split and self._tokens_mode:
            self._gather(name, stack.width)
        tokens = length(self._passing[name]) if split else length(self._own(name))
        self._product(tokens, up, stack.width)
        self._product(tokens, stack.width, columns)
        if split:
            self._sum_out(name, stack.width)

    def _connective(self, name: str, stack: Stack) -> None:
        def work(run: Sequence[Tile]) -> None:
            self._block = "connective"
            for tile in run:
                self._element(tile.tokens * stack.width)

        if self._pending is not None:
            self._pending.work.append(work)
            return
        self._block = "connective"
        self._element(length(self._own(name)) * stack.width)
