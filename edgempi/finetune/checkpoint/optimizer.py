"""What a torch optimizer keeps for each trained parameter, as named tensors: `exp_avg.{parameter}`.

Kinds are those of `torch.optim`: `step`, `exp_avg` and `exp_avg_sq` of Adam and AdamW, `momentum_buffer` of SGD.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from edgempi.errors import UserError

SCALARS = ("step",)


def optimizer_names(names: Iterable[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """What the state of these parameters is called, in order."""
    kinds = tuple(kinds)
    return tuple(f"{kind}.{name}" for name in names for kind in kinds)


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], kinds: Iterable[str]
) -> dict[str, Tensor]:
    """The state of parameters; zeros, which every kind starts from, where the optimizer has none yet.

    Args:
        optimizer: of these parameters.
        named: the parameters themselves, by name.
        kinds: what it keeps for each.
    """
    found = {}
    for full in optimizer_names(named, kinds):
        kind, _, name = full.partition(".")
        kept = optimizer.state[named[name]].get(kind) if named[name] in optimizer.state else None
        if kept is None:
            kept = torch.zeros(()) if kind in SCALARS else torch.zeros_like(named[name])
        found[full] = torch.as_tensor(kept).detach()
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_state` gave; moments in the dtype of their parameter.

    Raises:
        UserError: a parameter's moments have another shape.
    """
    for full, kept in state.items():
        kind, _, name = full.partition(".")
        parameter = named[name]
        if kind not in SCALARS and kept.shape != parameter.shape:
            raise UserError(
                f"optimizer state {full}", value=f"shape {[*kept.shape]}", rule=f"{name} is {[*parameter.shape]}",
                remedy="Resume with the settings that the checkpoint was written with",
            )  # fmt: skip
        optimizer.state[parameter][kind] = kept.clone() if kind in SCALARS else kept.to(parameter, copy=True)
