"""A run of a network's units on one device, and one pass through it.

What the executor of inference does between messages, without messages: a training stage holds whole layers and works on
its own rows, and its executor moves what crosses its ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgempi.models.block import Block
from edgempi.models.ends import Embed, Head
from edgempi.models.parts import Parts
from edgempi.models.stream import Memory, Stream
from edgempi.models.units import Unit
from edgempi.parallel.batch import Batch
from edgempi.parallel.seams import Whole
from edgempi.plan.flow import ends_encoder
from edgempi.plan.spec import ModelSpec

State = dict[str, Tensor]
"""What crosses a stage's end: streams by stack, and `memory`, the encoder's output; each (B, S, D)."""


@dataclass(frozen=True)
class Network:
    """Units of a model.

    Attributes:
        spec: the model.
        units: those of this device, by name.
        relative: the tables of relative positions, by stack.
        dtype: of the residual stream.
    """

    spec: ModelSpec
    units: Mapping[str, Unit]
    relative: Mapping[str, Tensor]
    dtype: torch.dtype


class Pass:
    """Rows on their way through a network.

    Attributes:
        state: the streams at hand; what was given at first, later what each unit made of it.
    """

    def __init__(self, network: Network, batch: Batch, given: State) -> None:
        self.state: State = dict(given)
        self._network, self._batch = network, batch
        self._streams: dict[str, Stream] = {}

    def run(self, unit: str) -> Tensor:
        """Run the next unit, which is not the head, and return its output."""
        layer, stack = self._network.units[unit], unit.partition(".")[0]
        assert not isinstance(layer, Head)
        if isinstance(layer, Embed):
            x = layer(self._stream(stack))
        elif isinstance(layer, Block):
            x = layer(Parts.of(self.state[stack]), self._stream(stack)).whole()
        else:
            x = layer(self.state[stack])
        self.state[stack] = x
        if ends_encoder(self._network.spec, unit):
            self.state["memory"] = self.state.pop(stack)
        return x

    def _stream(self, stack: str) -> Stream:
        if stack not in self._streams:
            batch, seam = self._batch, self._seam(stack)
            memory = self.state.get("memory") if stack == "dec" else None
            self._streams[stack] = Stream(
                stack=self._network.spec.stacks[stack],
                ids=batch.ids(stack),
                offset=0,
                padding=batch.padding(stack),
                types=batch.types,
                dtype=self._network.dtype,
                embedding_seam=seam,
                attention_seam=seam,
                mlp_seam=seam,
                relative_table=self._network.relative.get(stack),
                memory=None if memory is None else Memory(memory, self._seam("enc"), batch.enc_padding),
                memory_padding=batch.enc_padding,
            )
        return self._streams[stack]

    def _seam(self, stack: str) -> Whole:
        return Whole(self._batch.ids(stack).shape[1])
