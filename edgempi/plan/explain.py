"""A program in words and numbers: one row per device, as tables and JSON show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgempi.plan.memory import predict_memory
from edgempi.plan.messages import sent_bytes, token_bytes
from edgempi.plan.plan import Connective, Plan, Program, Stage
from edgempi.plan.share import DeviceShare, device_share
from edgempi.plan.spec import ModelSpec, is_layer, stack_of
from edgempi.plan.workload import Workload


def explain(program: Program, spec: ModelSpec, work: Workload, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per device, in rank order, JSON types.

    Returns:
        `device`, `rank`, `mode`, `layers`, `heads`, `mlp_columns`, `tokens` (or `rows` of the batch), `vocabulary`
        as text; `weight_bytes`, `memory_bytes` (peak above the import baseline), `sent_bytes` (one prefill) and
        `sent_bytes_per_token` (one decode step) as numbers.
    """
    plan = program.prefill
    generates = spec.generates and work.new_tokens > 0
    prefill = [sum(units.values()) for units in sent_bytes(plan, spec, work, one_token=generates)]
    step = [0] * len(names)
    if generates:
        each = token_bytes(plan, spec, work.rows)
        prefill = [a + b for a, b in zip(prefill, each, strict=True)]
        one = sent_bytes(program.decode, spec, replace(work, tokens=1), cached=True, one_token=True)
        step = [sum(units.values()) + b for units, b in zip(one, each, strict=True)]
    rows = []
    for rank, name in enumerate(names):
        share = device_share(plan, spec, rank)
        memory = predict_memory(plan, spec, rank, work)
        rows.append(
            {
                "device": name,
                "rank": rank,
                "mode": share.stage.modes.name,
                "layers": _layers(share.stage),
                "heads": _per_stack(share, spec, "heads"),
                "mlp_columns": _per_stack(share, spec, "mlp_columns"),
                "tokens": _tokens(share.stage, rank, work),
                "vocabulary": _vocabulary(share, spec),
                "weight_bytes": memory.weights,
                "memory_bytes": memory.peak,
                "sent_bytes": prefill[rank],
                "sent_bytes_per_token": step[rank],
            }
        )
    return rows


def headline(plan: Plan, spec: ModelSpec, work: Workload) -> str:
    """One sentence over the table."""
    stacks = " + ".join(f"{stack.layers} {name} layers" for name, stack in spec.stacks.items())
    forms = f"weights {plan.weight_dtype}, wire {plan.wire_dtype}"
    size = f"{work.rows} x {work.tokens} tokens"
    count, everyone = len(plan.working), len(plan.devices)
    devices = f"{everyone} devices" if count == everyone else f"{count} of {everyone} devices"
    return f"{spec.family}, {stacks}, {plan.name} over {devices}, {forms}, planned for {size}"


def _layers(stage: Stage) -> str:
    parts = []
    for stack in ("enc", "dec"):
        numbers = [int(u.partition(".")[2]) for u in stage.units if stack_of(u) == stack and is_layer(u)]
        if numbers:
            parts.append(f"{stack} {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{stack} {numbers[0]}")
    ends = [u for u in stage.units if not is_layer(u) and not u.endswith(".norm")]
    embeds = ["embed"] * any(unit.endswith(".embed") for unit in ends)
    return " ".join(embeds + parts + ["head"] * ("head" in ends)) or "idle"


def _per_stack(share: DeviceShare, spec: ModelSpec, what: str) -> str:
    """`3/8`, once where the stacks agree."""
    found = []
    for name, stack in spec.stacks.items():
        if any(stack_of(unit) == name and is_layer(unit) for unit in share.stage.units):
            total = getattr(stack, what)
            start, stop = getattr(share, what)[name]
            found.append(_part(stop - start, total))
    return " / ".join(dict.fromkeys(found)) or "-"


def _tokens(stage: Stage, device: int, work: Workload) -> str:
    place = stage.position(device)
    if stage.modes.connective == Connective.rows:
        start, stop = stage.row_spans(work.rows)[place]
        return f"{stop - start}/{work.rows} rows"
    start, stop = stage.token_spans(work.tokens)[place]
    return _part(stop - start, work.tokens)


def _vocabulary(share: DeviceShare, spec: ModelSpec) -> str:
    units = share.stage.units
    if not any(unit.endswith(".embed") or unit == "head" for unit in units):
        return "-"
    total = spec.stacks[spec.last].embedding.vocabulary
    start, stop = share.embedding if any(unit.endswith(".embed") for unit in units) else share.head
    return _part(stop - start, total)


def _part(count: int, total: int) -> str:
    """`3/8`, or `all 8`."""
    return f"all {total}" if count == total else f"{count}/{total}"
