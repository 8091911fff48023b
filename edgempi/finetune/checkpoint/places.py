"""Who sends which parameter to whom, when a run's state is gathered for a checkpoint and spread again from one.

Pure: every rank works out the same list and walks it in order. Plans may differ between the two, in their stages as in
the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from edgempi.plan.plan import Plan

UnitNames = Mapping[str, Iterable[str]]
"""The trained parameters of every unit of the model; several units may share one."""


@dataclass(frozen=True)
class Transfer:
    """One parameter, with what the optimizer keeps for it, from one device to another; the two may be the same."""

    name: str
    source: int
    target: int


class Gathered(Mapping[str, Tensor]):
    """Tensors that are fetched when they are asked for, and not kept.

    Args:
        names: in order.
        gather: gives a tensor by its name, own or from another device.
    """

    def __init__(self, names: Iterable[str], gather: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._gather = gather

    def __getitem__(self, name: str) -> Tensor:
        return self._gather(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def holders(plan: Plan, names: UnitNames) -> dict[str, tuple[int, ...]]:
    """The devices that hold each trained parameter, in the order of the model's units."""
    found: dict[str, dict[int, None]] = {name: {} for unit in names for name in names[unit]}
    for stage in plan.stages:
        for unit in stage.units:
            for name in names.get(unit, ()):
                found[name] |= dict.fromkeys(stage.devices)
    return {name: tuple(devices) for name, devices in found.items()}


def gathering(plan: Plan, names: UnitNames, root: int = 0) -> tuple[Transfer, ...]:
    """One sender of every parameter to `root`: itself where it holds it, else the holders in turns.

    Args:
        plan: under which they were trained; all holders have equal ones after a step.
        names: of every unit.
        root: who writes the checkpoint.
    """
    found = []
    for turn, (name, devices) in enumerate(holders(plan, names).items()):
        assert devices, f"{name} is held by no device of the plan"
        found.append(Transfer(name, root if root in devices else devices[turn % len(devices)], root))
    return tuple(found)


def spreading(plan: Plan, names: UnitNames, root: int = 0) -> tuple[Transfer, ...]:
    """From `root` to every device that a parameter is trained on, `root` itself included.

    Args:
        plan: under which training goes on.
        names: of every unit.
        root: who reads the checkpoint.
    """
    return tuple(
        Transfer(name, root, target) for name, devices in holders(plan, names).items() for target in sorted(devices)
    )
