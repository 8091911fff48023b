"""What a device really holds while it trains, by phase: the bytes of its tensors by what they are for, and its peaks.

Weights are all tensors of the model and of what is trained beside it; gradients and the optimizer's state are looked at
when an update has all its gradients, in the first updates of a phase. Activations are what resident memory rises beyond
these and beyond imports: libraries' buffers are in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
from torch import Tensor

from edgempi.profiling.process import forget_peak, peak_bytes

WEIGHED = 2
"""Updates of a phase that are looked at: in the second one the optimizer has its state."""
PLAIN = (str, bytes, bytearray, int, float, complex, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""What holds no tensors."""


@dataclass
class Held:
    """The most of one phase, in bytes.

    Attributes:
        weights: frozen and trained.
        gradients: of what is trained.
        optimizer: what it keeps for that.
        activations: the rest of `peak`.
        peak: resident memory above imports.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    peak: int = 0


class Holdings:
    """Of one rank, from loading on.

    Args:
        account: what is done first.
        import_bytes: what was resident before.
    """

    def __init__(self, account: str, import_bytes: int) -> None:
        self._account, self._import_bytes = account, import_bytes
        self._held: dict[str, Held] = {}
        self._left = 0

    def turn(self, account: str, *holders: object) -> None:
        """From now on something else is done.

        Args:
            account: a phase, or what lies between two.
            holders: of the weights.
        """
        self._book()
        forget_peak()
        self._account, self._left = account, WEIGHED
        own = self._own
        own.weights = max(own.weights, sum(storages(tensors_in(*holders)).values()))

    def weigh(self, trained: Mapping[str, Tensor], updater: object) -> None:
        """Look at an update whose gradients are all there.

        Args:
            trained: the trained tensors.
            updater: holds the optimizer's state.
        """
        if not self._left:
            return
        self._left -= 1
        gradients = storages(tensor.grad for tensor in trained.values() if tensor.grad is not None)
        kept = storages(tensors_in(updater))
        others = gradients.keys() | storages(trained.values()).keys()
        own = self._own
        own.gradients = max(own.gradients, sum(gradients.values()))
        own.optimizer = max(own.optimizer, sum(nbytes for place, nbytes in kept.items() if place not in others))

    def together(self) -> dict[str, Held]:
        """By account, up to now."""
        self._book()
        for own in self._held.values():
            own.activations = max(0, own.peak - own.weights - own.gradients - own.optimizer)
        return self._held

    def as_dict(self) -> dict[str, dict[str, int]]:
        """`together` in JSON types."""
        return {account: asdict(own) for account, own in self.together().items()}

    @property
    def peak(self) -> int:
        """The most of all accounts, above imports."""
        return max(own.peak for own in self.together().values())

    @property
    def _own(self) -> Held:
        return self._held.setdefault(self._account, Held())

    def _book(self) -> None:
        own = self._own
        own.peak = max(own.peak, peak_bytes() - self._import_bytes)


def tensors_in(*holders: object) -> list[Tensor]:
    """All tensors that objects hold, directly or in what they hold; keys of mappings are not looked at."""
    found: list[Tensor] = []
    seen: set[int] = set()
    left = list(holders)
    while left:
        one = left.pop()
        if one is None or isinstance(one, (*PLAIN, np.ndarray)) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, (list, tuple, set, frozenset)):
            left += one
        else:
            left += getattr(one, "__dict__", {}).values()
            slots = (name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ()))
            left += (getattr(one, name, None) for name in slots)
    return found


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of the storages that tensors lie in, each once; of packed weights, which have none, their own."""
    found = {}
    for tensor in tensors:
        if tensor.is_mkldnn:
            found[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found
