"""Which seam a block meets: from the plan's modes to one of the kinds in `seams.py` and `overlap.py`."""

from __future__ import annotations

from edgempi.comm import Group
from edgempi.comm.wire import wire_named
from edgempi.parallel.overlap import Overlapped
from edgempi.parallel.seams import AllReduce, GatherScatter, Tokens, Whole
from edgempi.plan.plan import Connective, Plan, Stage


def seam(plan: Plan, stage: Stage, group: Group, tokens: int, split: bool) -> Whole:
    """The seam of a block on `stage` in a pass of `tokens` tokens; `split`: whether its weights are shared out."""
    wire = wire_named(plan.wire_dtype)
    match stage.modes.connective:
        case Connective.tokens:
            all_spans = stage.token_spans(tokens)
            counts = [stop - start for start, stop in all_spans]
            own = all_spans[group.rank]
            if not split:
                return Tokens(counts, own, group, wire)
            if plan.overlap == "blocking" or group.size == 1:
                return GatherScatter(counts, own, group, wire)
            return Overlapped(counts, own, group, wire, plan.overlap, plan.subtiles)
        case Connective.replicated if split:
            return AllReduce(tokens, group, wire)
        case _:
            return Whole(tokens)
