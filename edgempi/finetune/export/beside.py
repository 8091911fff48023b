"""A side network that goes along with the passes of a model of transformers, by hooks on its layers.

What goes into the first layer and comes out of each is what the side network reads; what comes out of the last one, or
of the norm behind it, is what its output is added to. It computes with the blocks that it was trained with. For
inference: no gradients flow through it, and it keeps no keys and values of earlier passes.

Shapes: B rows, S tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgempi.errors import UserError
from edgempi.finetune.export.names import layer_module, present
from edgempi.finetune.network import Pass
from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques import Side
from edgempi.parallel.batch import Batch
from edgempi.plan.flow import ends_encoder
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Tuning

Output: TypeAlias = Tensor | tuple[Any, ...]
"""What a layer gives: its hidden states, or these and more."""


class Beside:
    """The side network of one model.

    Args:
        spec: the model.
        tuning: the side network's sizes.
        state: its parameters, `side.*`.
    """

    def __init__(self, spec: ModelSpec, tuning: Tuning, state: Mapping[str, Tensor]) -> None:
        self._spec, self._merge = spec, tuning.merge
        trained = Trained(spec, spec.units, tuning, state["side.up.weight"].dtype)
        self._side = Side(spec, spec.units, tuning, trained, lambda name, shape, generator: state[f"side.{name}"])
        self._given: dict[str, dict[str, Any]] = {}
        self._lanes: dict[str, Pass] = {}
        self._memory: tuple[Tensor, Tensor] | None = None
        """The side encoder's output, and the backbone's beside it."""

    def hook(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Put the hooks into a model, and what removes them into `handles`.

        Raises:
            UserError: it lacks a layer, or is of another class than its weights.
        """
        modules = dict(model.named_modules())
        for stack, about in self._spec.stacks.items():
            units = [f"{stack}.{layer}" for layer in range(about.layers)]
            layers = [layer_module(present(self._spec, f"{unit}.attention.out", modules)) for unit in units]
            entry = _entry(modules, layers[0])
            names = tuple(inspect.signature(entry.forward).parameters)
            handles += [
                entry.register_forward_pre_hook(partial(self._enter, stack, names), with_kwargs=True),
                modules[layers[0]].register_forward_pre_hook(partial(self._begin, stack), with_kwargs=True),
            ]
            if about.final_norm:
                units.append(f"{stack}.norm")
                layers.append(present(self._spec, units[-1], modules))
            for unit, layer in zip(units, layers, strict=True):
                handles.append(modules[layer].register_forward_hook(partial(self._follow, unit)))

    def _enter(self, stack: str, names: tuple[str, ...], module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note what a stack is called with; its layers get masks in another form."""
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        past = given.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            raise _misused("a pass with keys and values of earlier ones", "it sees all tokens in each pass",
                           "Generate with use_cache=False")  # fmt: skip
        self._given[stack] = given

    @torch.no_grad()
    def _begin(self, stack: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a pass with what goes into the first layer, (B, S, D)."""
        b = args[0] if args else kwargs["hidden_states"]
        given = self._given.pop(stack, {})
        padding = _padding(given.get("attention_mask"), b)
        if stack == "enc":
            lane = Pass(self._side.network, Batch(enc_ids=_ids(b), enc_padding=padding), {})
        elif self._spec.enc is None:
            lane = Pass(self._side.network, Batch(dec_ids=_ids(b), dec_padding=padding), {})
        else:
            memory = self._remembered(given.get("encoder_hidden_states"))
            seen = _padding(given.get("encoder_attention_mask"), memory)
            batch = Batch(enc_ids=_ids(memory), enc_padding=seen, dec_ids=_ids(b), dec_padding=padding)
            lane = Pass(self._side.network, batch, {"memory": memory})
        lane.state[stack] = self._side.enter(f"{stack}.embed", None, b)
        self._lanes[stack] = lane

    @torch.no_grad()
    def _follow(self, unit: str, module: nn.Module, args: Any, output: Output) -> Output | None:
        """Run what stands beside a unit; after the last one, give the sum in place of its output."""
        stack, _, part = unit.partition(".")
        lane, b = self._lanes[stack], output if isinstance(output, Tensor) else output[0]
        if part != "norm":
            lane.state[stack] = self._side.enter(unit, lane.state[stack], b)
        lane.run(unit)
        if ends_encoder(self._spec, unit):
            self._memory = (self._lanes.pop(stack).state["memory"], b)
        if unit != self._spec.units[-2]:
            return None
        hidden = self._side.up(self._lanes.pop(stack).state[stack])
        hidden = (b.to(hidden.dtype) + hidden if self._merge else hidden).to(b.dtype)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    def _remembered(self, encoded: Tensor | None) -> Tensor:
        """What the side encoder made of the rows that the decoder attends to, several times each for beams."""
        if encoded is not None and self._memory is not None:
            side, backbone = self._memory
            times = len(encoded) // len(backbone)
            if times and torch.equal(encoded, backbone.repeat_interleave(times, dim=0)):
                return side.repeat_interleave(times, dim=0)
        raise _misused(
            "encoder outputs of another pass", "the decoder runs on what the encoder gave last",
            "Give the model the encoder's input_ids in each call",
        )  # fmt: skip


def _entry(modules: Mapping[str, nn.Module], layer: str) -> nn.Module:
    """The module that holds a layer and is called with token ids, and so with a mask of (B, S)."""
    parts = layer.split(".")
    for count in reversed(range(len(parts))):
        module = modules[".".join(parts[:count])]
        if hasattr(module, "forward") and "input_ids" in inspect.signature(module.forward).parameters:
            return module
    raise _misused(
        f"no module above {layer} takes input_ids", "it is a model of transformers", "Load it with its class"
    )


def _ids(x_BSD: Tensor) -> Tensor:
    """Token ids for hidden states, of which a side network reads the number alone."""
    return torch.zeros(x_BSD.shape[:2], dtype=torch.int64)


def _padding(mask: Tensor | None, x_BSD: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != x_BSD.shape[:2]:
        raise _misused(
            f"a mask of {[*mask.shape]}", f"it has one entry per token, {[*x_BSD.shape[:2]]}",
            "Give the tokenizer's attention_mask",
        )  # fmt: skip
    return mask.bool()


def _misused(value: str, rule: str, remedy: str) -> UserError:
    return UserError("model with a side network", value=value, rule=rule, remedy=remedy)
