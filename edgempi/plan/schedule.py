"""What each device of a stage does, step by step, in one unit: the model of time that mirrors seams and blocks.

Overlapped hybrid blocks (Galaxy, arXiv 2405.17245, tile-based overlap, with the whole MLP per tile of rows):

    attention   QKV of the own tokens, then of each tile as it arrives; then for each tile its queries' core and output
                projection, given to the ring reduce-scatter, and last for the own tokens. Bidirectional attention needs
                all keys before the first query, causal attention of a tile the keys up to its end.
    MLP         up-projection of the own tokens; then for each tile as it arrives up and down, given; last the down-
                projection of the own tokens

`icollective` is taken to last as long as `ring`: the same bytes on the same links. What steps cost is `plan/steps.py`.
Left out: what rotary positions, masks and copies take beside the fits of a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgempi.cluster.profile import ClusterProfile
from edgempi.plan.apportion import Span, length
from edgempi.plan.plan import Block, Plan, Stage, Table
from edgempi.plan.simulate import Program
from edgempi.plan.spec import ModelSpec, Stack
from edgempi.plan.steps import Steps
from edgempi.plan.tiles import arrivals


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
        """Of any layer of a stack: its layers are alike."""
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
        self._element(length(self._own(name)) * self._spec.stacks[name].width)
        return self._steps

    def publish(self, name: str) -> Program:
        """Of the gathering of the encoder's output where decoder layers read all of it."""
        self._begin("handover")
        self._gather(name, self._spec.stacks[name].width)
        return self._steps

    def head(self, one_token: bool) -> Program:
        """Of the head; `one_token`: each row's one token is asked for."""
        self._begin("head")
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
        if crossing and (split or not self._tokens_mode) and self._passing[name][0] == 0:
            self._product(keys, 2 * kv * size, stack.width)
        if split and self._tokens_mode and self._overlapped and not crossing:
            self._tiled_attention(name, stack, qkv, causal, core, leave)
            return
        if self._tokens_mode and not split:
            own = self._own(name)
            self._product(length(own), qkv, stack.width)
            if crossing and self._passing[name][0] == 0:
                self._product(length(self._own(source)), 2 * kv * size, stack.width)
            if not crossing or self._passing[name][0] == 0:
                self._gather(source, 2 * stack.kv_heads * size)
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
        own_tokens = sum(tile.tokens for tile in tiles[self._place])
        self._product(own_tokens, qkv, stack.width)
        order = arrivals(tiles, self._place)
        sums = self._new_keys(tiles)
        take_in = list(order)

        def needs(stop: int) -> None:
            """Take in the tiles that queries up to `stop` look at."""
            for late in [tile for tile in take_in if not causal or tile.span[0] < stop]:
                self._take(base, late, stack.width)
                self._product(late.tokens, qkv, stack.width)
                take_in.remove(late)

        def from_core(start: int, stop: int) -> None:
            core((first + start, first + stop), first + stop if causal else keys)
            leave(stop - start)

        for tile in order:
            needs(tile.span[1])
            from_core(*tile.span)
            self._give(sums, tile, stack.width)
        needs(self._passing[name][1])
        from_core(*self._stage.token_spans(length(self._passing[name]))[self._place])
        self._finish_sums(sums, tiles, stack.width)

    def _mlp(self, name: str, stack: Stack) -> None:
        columns = length(self._share.mlp_columns[name])
        up = columns * (2 if stack.gated else 1)
        split = self._stage.modes.mlp == Block.tensor and self._size > 1
        if split and self._tokens_mode and self._overlapped:
            tiles = self._tiles(name)
            base = self._start_gather(tiles, stack.width)
            self._product(sum(tile.tokens for tile in tiles[self._place]), up, stack.width)
            sums = self._new_keys(tiles)
            for tile in arrivals(tiles, self._place):
                self._take(base, tile, stack.width)
                self._product(tile.tokens, up, stack.width)
                self._product(tile.tokens, stack.width, columns)
                self._give(sums, tile, stack.width)
            self._product(sum(tile.tokens for tile in tiles[self._place]), stack.width, columns)
            self._finish_sums(sums, tiles, stack.width)
            return
        if split and self._tokens_mode:
            self._gather(name, stack.width)
        tokens = length(self._passing[name]) if split else length(self._own(name))
        self._product(tokens, up, stack.width)
        self._product(tokens, stack.width, columns)
        if split:
            self._sum_out(name, stack.width)

    def _connective(self, name: str, stack: Stack) -> None:
        self._block = "connective"
        self._element(length(self._own(name)) * stack.width)
