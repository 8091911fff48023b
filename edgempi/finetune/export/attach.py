"""Put adapters or a side network beside a model of transformers, by hooks: the model's own code and weights stay.

Houlsby's adapters (arXiv 1902.00751) work on the output of two linears of each layer; for the side network see
`beside`. LoRA is peft's to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgempi.errors import UserError
from edgempi.finetune.export.beside import Beside
from edgempi.finetune.export.names import label_module, present
from edgempi.finetune.export.own import check_state, read_own
from edgempi.finetune.techniques.adapter import BEHIND
from edgempi.models.source import locate, read_spec
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.training.technique import Technique

MARK = "_edgempi_adapter"
"""The attribute by which a model is known to have an adapter already."""


@dataclass
class Attached:
    """What was put beside a model."""

    _model: nn.Module
    _handles: list[RemovableHandle] = field(default_factory=list)
    _replaced: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _used_cache: object = None

    def remove(self) -> None:
        """Make the model what it was before."""
        for handle in self._handles:
            handle.remove()
        with torch.no_grad():
            for parameter, before in self._replaced:
                parameter.copy_(before)
        _use_cache(self._model, self._used_cache)
        self._handles.clear()
        self._replaced.clear()
        self._used_cache = None
        setattr(self._model, MARK, None)


def attach(model: Any, folder: str | Path, base: str | Path | None = None) -> Attached:
    """Make a model answer as it did at the end of training. For inference, on the CPU.

    With a side network, text is generated without a cache of keys and values; the model's generation settings are
    changed to that.

    Args:
        model: of transformers, in evaluation mode, of the class that the folder's card names.
        folder: an export of adapters or of a side network.
        base: the folder that the model was loaded from; by default it is asked.

    Raises:
        UserError: the adapter belongs to another base model, is LoRA or damaged, or the model is of another class.
    """
    folder = Path(folder)
    adapter = read_own(folder)
    source = base or getattr(model, "name_or_path", "")
    if not source:
        raise UserError(
            f"adapter {folder}", value="a model of unknown origin", rule="it is attached to the model it was made for",
            remedy="Load the model with from_pretrained, or name its folder: attach(model, folder, base)",
        )  # fmt: skip
    where = locate(str(source), adapter.base.revision if str(source) == adapter.base.name else None)
    spec = read_spec(where)
    adapter.base.check(where, spec, folder)
    spec = spec if adapter.head is None else replace(spec, head=adapter.head)
    check_state(folder, spec, adapter)
    if model.training or getattr(model, MARK, None):
        state = "in training mode" if model.training else f"with {getattr(model, MARK)} attached"
        raise UserError(
            f"adapter {folder}", value=f"a model {state}", rule="it is attached for inference, and one at a time",
            remedy="Call model.eval() first, and remove() what attach gave",
        )  # fmt: skip
    found = Attached(model)
    try:
        found._replaced += _put_head(model, spec, adapter.state)
        if adapter.tuning.technique is Technique.adapter:
            _hook_adapters(model, spec, adapter.state, found._handles)
        else:
            Beside(spec, adapter.tuning, adapter.state).hook(model, found._handles)
            found._used_cache = _use_cache(model, False)
    except BaseException:
        found.remove()
        raise
    setattr(model, MARK, str(folder))
    return found


def _hook_adapters(
    model: nn.Module, spec: ModelSpec, state: Mapping[str, Tensor], handles: list[RemovableHandle]
) -> None:
    modules = dict(model.named_modules())
    for unit in filter(is_layer, spec.units):
        for linear, place in BEHIND.items():
            module = modules[present(spec, f"{unit}.{linear}", modules)]
            name = f"{unit}.{place}.adapter"
            parts = [state[f"{name}.{half}.{kind}"] for half in ("down", "up") for kind in ("weight", "bias")]
            handles.append(module.register_forward_hook(partial(_behind, parts)))


def _behind(parts: Sequence[Tensor], module: nn.Module, args: Any, y: Tensor) -> Tensor:
    """What a linear gives, with its adapter's part added: y + up(gelu(down(y)))."""
    down, down_bias, up, up_bias = parts
    inside = F.gelu(F.linear(y.to(down.dtype), down, down_bias))
    return y + F.linear(inside, up, up_bias).to(y.dtype)


def _put_head(model: nn.Module, spec: ModelSpec, state: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Copy a trained head into a model; returns its parameters with what they were."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    found: list[tuple[Tensor, Tensor]] = []
    for name, value in state.items():
        if not name.startswith("head."):
            continue
        stem, _, kind = name.rpartition(".")
        path = f"{label_module(spec, stem, type(model).__name__)}.{kind}"
        if path not in named or named[path].shape != value.shape:
            has = [*named[path].shape] if path in named else "none"
            raise UserError(
                f"model {type(model).__name__}", value=f"{path}: {has}", rule=f"the trained head has {[*value.shape]}",
                remedy=f"Load the class of the adapter's card with num_labels={spec.head.rows}",
            )  # fmt: skip
        found.append((named[path], value))
    before = [(parameter, parameter.detach().clone()) for parameter, _ in found]
    with torch.no_grad():
        for parameter, value in found:
            parameter.copy_(value)
    return before


def _use_cache(model: Any, use: object) -> object:
    """Set whether text is generated with a cache; returns what it was, and does nothing for None."""
    settings = getattr(model, "generation_config", None)
    before = getattr(settings, "use_cache", None)
    if settings is not None and use is not None:
        settings.use_cache = use
    return before
