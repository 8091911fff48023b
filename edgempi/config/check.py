"""Impossible combinations: what each group allows by itself and the groups together do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from edgempi.config.schema import Config, ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.errors import UserError

DEVICE_VECTORS = ("heads", "mlp_columns", "vocabulary", "tokens", "rows")


def check_config(config: Config) -> None:
    """Raise a `UserError` for the first impossible combination; what needs the model is checked with the plan."""
    if not config.model.path:
        raise UserError(
            "model.path", value="empty", rule="a model is a folder, a hub id, or assistant",
            remedy="Set model.path=/folder/with/config.json",
        )  # fmt: skip
    devices = config.cluster.named_devices()
    _check_hosts([device.host for device in devices.values()])
    if config.planner.path is None:
        stages = _check_stages(config.parallel, len(devices))
        _check_modes(config.parallel, stages)
        _check_layers(config.planner, len(stages))
    _check_planner(config.planner, len(devices))
    allowed = config.wire.allowed
    if allowed is not None and (not allowed or config.planner.name is not PlannerName.auto):
        raise UserError(
            "wire.allowed", value=f"{[wire.value for wire in allowed]} with planner={config.planner.name}",
            rule="planner=auto chooses among one or more formats; other planners take wire.dtype",
            remedy="Set wire=int8 (bf16, fp32), or planner=auto wire.allowed=[fp32,int8]",
        )  # fmt: skip
    if config.task.name == "infer" and not config.data.prompts and config.data.file is None:
        raise UserError(
            "data", value="no prompts and no file", rule="infer answers at least one request",
            remedy="Give data.prompts='[\"hello\"]', data.file=requests.txt or data=household",
        )  # fmt: skip


def _check_hosts(hosts: Sequence[str]) -> None:
    # Launchers number ranks host by host, so another order would give a device somebody else's share.
    runs = Counter(host for host, _ in groupby(hosts))
    for host, count in runs.items():
        if count > 1:
            raise UserError(
                "cluster.devices", value=f"{host} stands in {count} places of the list",
                rule="the devices of one host follow each other", remedy="Reorder cluster.devices",
            )  # fmt: skip


def _check_stages(parallel: ParallelConfig, size: int) -> list[list[int]]:
    """The devices of each stage, once they are known to be sound."""
    if parallel.stages is None:
        everyone = list(range(size))
        return [[device] for device in everyone] if parallel.pipeline else [everyone]
    named = [device for stage in parallel.stages for device in stage]
    strangers = sorted({device for device in named if not 0 <= device < size})
    twice = sorted(device for device, count in Counter(named).items() if count > 1)
    absent = sorted(set(range(size)) - set(named))
    for wrong, rule in (
        ([] if all(parallel.stages) and parallel.stages else ["an empty stage"], "each stage has a device"),
        (strangers, f"the cluster has devices 0 to {size - 1}"),
        (twice, "a device works in one stage"),
        (absent, "every device of the cluster works in a stage; these do not"),
    ):
        if wrong:
            raise UserError(
                "parallel.stages", value=", ".join(map(str, wrong)), rule=rule,
                remedy=f"Correct parallel.stages={_compact(parallel.stages)}, or the number of devices ({size})",
            )  # fmt: skip
    return parallel.stages


def _check_modes(parallel: ParallelConfig, stages: Sequence[Sequence[int]]) -> None:
    if len(parallel.modes) not in (1, len(stages)):
        raise UserError(
            "parallel.modes", value=f"{len(parallel.modes)} modes", rule=f"one for all, or one for each of the "
            f"{len(stages)} stages", remedy="Correct parallel.modes, or parallel.stages",
        )  # fmt: skip
    modes = parallel.modes * len(stages) if len(parallel.modes) == 1 else parallel.modes
    for number, (mode, stage) in enumerate(zip(modes, stages, strict=True)):
        if mode == Sharing.single and len(stage) > 1:
            raise UserError(
                "parallel.modes", value=f"single, for the {len(stage)} devices of stage {number}",
                rule="single is one device's", remedy="Set cluster=local1, or choose parallel=hybrid or pipeline",
            )  # fmt: skip


def _check_layers(planner: PlannerConfig, stages: int) -> None:
    if planner.layers is not None and (len(planner.layers) != stages or min(planner.layers) < 0):
        raise UserError(
            "planner.layers", value=_compact(planner.layers), rule=f"{stages} counts of zero or more, one per stage",
            remedy="Correct planner.layers, or choose parallel=pipeline for one stage per device",
        )  # fmt: skip


def _check_planner(planner: PlannerConfig, size: int) -> None:
    given = [name for name in DEVICE_VECTORS if getattr(planner, name) is not None]
    manual = planner.name == PlannerName.manual
    if planner.speeds is not None and planner.name != PlannerName.proportional:
        raise _ignored("speeds", planner.name, PlannerName.proportional)
    for name in [*given, *(["path"] if planner.path is not None else [])]:
        if not manual:
            raise _ignored(name, planner.name, PlannerName.manual)
    if planner.path is not None and (given or planner.layers is not None):
        raise UserError(
            "planner.path", value=f"beside planner.{(given or ['layers'])[0]}", rule="a program holds all shares",
            remedy="Give one of the two; edit the file to change its shares",
        )  # fmt: skip
    if manual and planner.path is None and not given and planner.layers is None:
        raise UserError(
            "planner", value="manual, without shares", rule="manual takes the shares from you",
            remedy=f"Set one of planner.{', '.join(DEVICE_VECTORS)}, layers or path, or choose planner=even",
        )  # fmt: skip
    for name in ("speeds", *given):
        shares = getattr(planner, name)
        if shares is not None and (len(shares) != size or min(shares) < 0 or sum(shares) <= 0):
            raise UserError(
                f"planner.{name}", value=_compact(shares),
                rule=f"{size} numbers of zero or more and not all zero, one for each device",
                remedy=f"Correct planner.{name}, or the number of devices (cluster.ranks)",
            )  # fmt: skip


def _ignored(name: str, chosen: PlannerName, needed: PlannerName) -> UserError:
    return UserError(
        f"planner.{name}", value=f"given to planner={chosen}", rule=f"only planner={needed} reads it",
        remedy=f"Add planner={needed}, or leave planner.{name} out",
    )  # fmt: skip


def _compact(numbers: object) -> str:
    return str(numbers).replace(" ", "")
