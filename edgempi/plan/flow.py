"""What passes through the stages: which units a pass needs, and what must be handed from one stage to the next.

The executor follows these to move tensors, the cost model to count their bytes.
"""

from __future__ import annotations

from edgempi.plan.apportion import Span, apportion, length, spans
from edgempi.plan.layout import Layout, Region
from edgempi.plan.plan import Block, Plan, Stage
from edgempi.plan.spec import ModelSpec, is_layer, stack_of

Shape = tuple[int, int, int]
"""(rows, tokens, columns) of a whole tensor."""


def due(plan: Plan, spec: ModelSpec, cached: bool) -> list[tuple[Stage, tuple[str, ...]]]:
    """The stages that take part in a pass, with the units they run.

    Args:
        plan: who owns what.
        spec: the model.
        cached: whether the cache holds tokens already; then an encoder has spoken and is left out.
    """
    skip = "enc." if spec.dec is not None and cached else "-"
    stages = ((stage, tuple(unit for unit in stage.units if not unit.startswith(skip))) for stage in plan.stages)
    return [(stage, units) for stage, units in stages if units]


def chunk_spans(plan: Plan, tokens: int) -> tuple[Span, ...]:
    """The chunks into which a pass of `tokens` tokens is cut, none of them empty; one where the plan cuts nothing."""
    if not plan.token_chunks or len(plan.stages) == 1:
        return ((0, tokens),)
    return tuple(span for span in spans(apportion(tokens, plan.token_chunks)) if length(span))


def carried(spec: ModelSpec, unit: str, cached: bool) -> list[str]:
    """What must be at hand before `unit` can run: streams by stack name, and `memory`, the encoder's output."""
    stack, _, part = unit.partition(".")
    if unit == "head":
        return [spec.last]
    streams = [] if part == "embed" else [stack]
    crosses = stack == "dec" and spec.enc is not None and part != "norm" and not cached
    return streams + ["memory"] * crosses


def ends_encoder(spec: ModelSpec, unit: str) -> bool:
    """Whether the encoder's output is complete after `unit`."""
    following = spec.units[spec.units.index(unit) + 1 :][:1]
    return following == ("dec.embed",)


def reads_whole_memory(stage: Stage) -> bool:
    """Whether the stage's decoder layers are split by heads, so that each device reads all of the encoder's output."""
    decodes = any(stack_of(unit) == "dec" and is_layer(unit) for unit in stage.units)
    return decodes and stage.modes.attention == Block.tensor


def lies(stage: Stage, name: str, shape: Shape) -> Layout:
    """Where a carried tensor lies on a stage's devices."""
    layout = stage.layout(*shape)
    if name == "memory" and reads_whole_memory(stage):
        return {device: Region(box.rows, (0, shape[1]), box.columns) for device, box in layout.items()}
    return layout
