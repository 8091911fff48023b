"""What an optimizer keeps for each trained parameter, as named tensors: `exp_avg.{parameter}`.

Kinds are those of `torch.optim`: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of SGD.
"""

from __future__ import annotations

from collections.abc import Iterable


def optimizer_names(names: Iterable[str], kinds: Iterable[str]) -> tuple[str, ...]:
    """What the state of these parameters is called, in order."""
    kinds = tuple(kinds)
    return tuple(f"{kind}.{name}" for name in names for kind in kinds)
