"""What comes out of a pass: named tensors that lie where the last stage left them, until somebody wants them whole.

Shapes: B rows of the whole batch, S tokens, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.comm import World
from edgempi.plan.apportion import Span, spans
from edgempi.plan.layout import Layout, Region
from edgempi.plan.plan import Stage, Table
from edgempi.plan.spec import ModelSpec


@dataclass(frozen=True)
class Output:
    """One named result of a microbatch or of a chunk of its tokens: this rank's box (None: none), and where all lie.

    Attributes:
        rows: of the microbatch, in the batch; the outputs of one microbatch's chunks come in order.
    """

    rows: Span
    tensor: Tensor | None
    layout: Layout
    shape: tuple[int, int, int]


def lay_out(
    tensors: Mapping[str, Tensor], spec: ModelSpec, stage: Stage, rows: Span, tokens: int, one_token: bool
) -> dict[str, Output]:
    """Say where the outputs of a microbatch lie.

    Args:
        tensors: this rank's boxes by name; none where it is not in the last stage.
        spec: the model.
        stage: the last one.
        rows: the microbatch's, in the batch.
        tokens: of the pass, which may be a chunk of a prompt.
        one_token: whether the head was asked for one token of each row.
    """
    head, width = spec.head, spec.stacks[spec.last].width
    names = {"logits": head.rows} if head.rows else {"last_hidden_state": head.project_width or width}
    if not head.rows and head.dense:
        names["pooler_output"] = width
    found = {}
    B = rows[1] - rows[0]
    for name, columns in names.items():
        one = one_token and name != "last_hidden_state"
        S = 1 if one else tokens
        split = name == "logits" and head.vocabulary and stage.modes.head == Table.vocabulary
        boxes = {}
        for device, own in stage.layout(B, tokens, columns).items():
            column_span = spans(stage.vocabulary)[stage.position(device)] if split else own.columns
            boxes[device] = Region(own.rows, (0, S) if one or split else own.tokens, column_span)
        found[name] = Output(rows, tensors.get(name), boxes, (B, S, columns))
    return found


def collect(world: World, outputs: Sequence[Mapping[str, Output]], targets: Sequence[int]) -> dict[str, Tensor]:
    """Bring outputs whole to the target ranks.

    Collective: every rank, same order.

    Returns:
        (B, S or 1, D) by name, in fp32, on the targets; an empty mapping elsewhere.
    """
    whole: dict[str, dict[Span, list[Tensor]]] = {}
    with world.traffic.within("collect"):
        for output in outputs:
            for name, part in output.items():
                B, S, D = part.shape
                layout = {rank: Region((0, B), (0, S), (0, D)) for rank in targets}
                got, pending = world.transfer(part.tensor, part.layout, layout, torch.float32)
                pending.wait()
                if got is not None:
                    whole.setdefault(name, {}).setdefault(part.rows, []).append(got)
    return {name: torch.cat([_joined(chunks) for chunks in parts.values()]) for name, parts in whole.items()}


def _joined(chunks: Sequence[Tensor]) -> Tensor:
    """The chunks of one microbatch, end to end; one alone is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(tuple(chunks), dim=1)
