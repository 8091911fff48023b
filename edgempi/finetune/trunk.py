"""One device's units with what is trained beside them: forward from one end of a stage to the other, or to the loss.

Under `parallel_adapter` the backbone runs without gradients, or not at all where its activations come from the cache.

Shapes: B rows of this device in a microbatch, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgempi.finetune.data.collate import Rows
from edgempi.finetune.loss import Loss, loss_of, no_loss, places
from edgempi.finetune.network import Network, Pass, State
from edgempi.finetune.parameters import Trained
from edgempi.finetune.techniques import Initial, Side, Source, beginning, learning_dtype, provider
from edgempi.finetune.techniques.head import TaskHead
from edgempi.models.allocator import returning
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.ends import Head
from edgempi.models.units import load_units
from edgempi.parallel.seams import Whole
from edgempi.plan.flow import carried
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning

Reader = Callable[[str], Tensor]
"""The cached activation (B, S, D) of a unit, in place of running the backbone."""
SIDE = "side."


class Trunk:
    """What a device trains, ready to run.

    Args:
        spec: the model, with the head that is fine-tuned.
        units: of this device, in order.
        tuning: the technique.
        trained: the tensors that are trained.
        network: the model's units; of them only the head where the backbone is not there.
        side: the side network under `parallel_adapter`, None otherwise.

    Attributes:
        dtype: of the model's states.
        learning_dtype: of the side network's states, and of what is trained.
        cached_units: which of the backbone's activations the side network reads here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        units: Sequence[str],
        tuning: Tuning,
        trained: Trained,
        network: Network,
        side: Side | None,
    ) -> None:
        self.spec, self.units, self.tuning, self.trained = spec, tuple(units), tuning, trained
        self.dtype, self.learning_dtype = network.dtype, trained.dtype
        self._network, self._side = network, side
        reads = [unit for unit in self.units if not unit.endswith(".norm") and (unit != "head" or tuning.merge)]
        self.cached_units: tuple[str, ...] = () if side is None else tuple(reads)

    def forward(
        self, rows: Rows, given: State, read: Reader | None = None, kept: dict[str, Tensor] | None = None
    ) -> State | Loss:
        """Run this device's units.

        Args:
            rows: exactly the rows of this device in this microbatch.
            given: what the stage before handed over (`boundary`); nothing on the first stage.
            read: gives cached activations, which take the backbone's place; None runs it.
            kept: filled with the activations to cache, by unit.

        Returns:
            What the next stage is given, or the loss where the head is here.
        """
        if self._side is None:
            main = Pass(self._network, rows.batch, {name: x.to(self.dtype) for name, x in given.items()})
            for unit in self.units:
                if unit == "head":
                    return self._answer(rows, main.state[self.spec.last], None)
                main.run(unit)
            return {name: main.state[name] for name in self._handed()}
        return self._beside(self._side, rows, given, read, kept)

    def boundary(self, rows: Rows, cached: bool = False) -> dict[str, tuple[int, ...]]:
        """Shapes of what the next stage is given, by name, in order; nothing after the head.

        Args:
            rows: of this device.
            cached: whether the backbone's activations come from the cache.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name in self._handed():
            stack = "enc" if name == "memory" else name
            found[name] = (*rows.batch.ids(stack).shape, self.spec.stacks[stack].width)
        if self._side is None:
            return found
        narrow = {SIDE + name: (*shape[:-1], shape[-1] // self.tuning.reduction) for name, shape in found.items()}
        return narrow if cached else found | narrow

    def drop_backbone(self) -> None:
        """Let go of the backbone, but for the head: from now on its activations come from the cache."""
        units = {unit: run for unit, run in self._network.units.items() if unit == "head"}
        self._network = Network(self.spec, units, {}, self.dtype)

    def _beside(
        self, side: Side, rows: Rows, given: State, read: Reader | None, kept: dict[str, Tensor] | None
    ) -> State | Loss:
        beside = {name.removeprefix(SIDE): x for name, x in given.items() if name.startswith(SIDE)}
        below = {name: x for name, x in given.items() if not name.startswith(SIDE)}
        main = Pass(self._network, rows.batch, {name: x.detach().to(self.dtype) for name, x in below.items()})
        lane = Pass(side.network, rows.batch, {name: x.to(self.learning_dtype) for name, x in beside.items()})
        for unit in self.units:
            b = self._backbone(main, unit, read)
            if kept is not None and b is not None:
                kept[unit] = b
            stack = unit.partition(".")[0]
            if unit == "head":
                return self._answer(rows, lane.state[self.spec.last], b)
            if b is not None:
                lane.state[stack] = side.enter(unit, lane.state.get(stack), b)
            if unit in side.network.units:
                lane.run(unit)
        state: State = {} if read is not None else {name: main.state[name] for name in self._handed()}
        return state | {SIDE + name: lane.state[name] for name in self._handed()}

    def _backbone(self, main: Pass, unit: str, read: Reader | None) -> Tensor | None:
        """The backbone's activation at a unit, None where the side network does not read it."""
        wanted = unit in self.cached_units
        if read is not None:
            return read(unit) if wanted else None
        with torch.no_grad():
            b = main.state[self.spec.last] if unit == "head" else main.run(unit)
        return b if wanted else None

    def _answer(self, rows: Rows, x: Tensor, below: Tensor | None) -> Loss:
        """The loss from the last stream: the side network's where there is one, then with the backbone's beside it."""
        read = places(self.spec, rows)
        hidden = read.of(x)
        if self._side is not None:
            hidden = self._side.up(hidden)
            if below is not None:
                hidden = read.of(below).to(hidden.dtype) + hidden
        if not len(read.targets):
            return no_loss(self.spec, rows, hidden)
        # A head of labels is trained, and so kept in the precision of what is trained.
        hidden = hidden.to(self.dtype if self.spec.head.vocabulary else self.learning_dtype)
        head = self._network.units["head"]
        assert isinstance(head, Head)
        logits = head(hidden[None], Whole(len(read.targets)), None)["logits"][0]
        return loss_of(self.spec, rows, read, logits)

    def _handed(self) -> list[str]:
        """The names of the streams that the next stage's first unit reads."""
        following = self.spec.units[self.spec.units.index(self.units[-1]) + 1 :][:1]
        return [name for unit in following for name in carried(self.spec, unit, False)]


def load_trunk(
    folder: Path,
    spec: ModelSpec,
    units: Sequence[str],
    tuning: Tuning,
    dtype: torch.dtype,
    seed: int = 0,
    task: TaskHead | None = None,
    initial: Initial = Initial.magnitude,
    backbone: bool = True,
) -> Trunk:
    """Load a device's units, reading their weights alone (and see `techniques/prune.py` for what a side network reads).

    Args:
        folder: the checkpoint on this host.
        spec: the model.
        units: of this device, a run of `spec.units`.
        tuning: the technique.
        dtype: what the model computes in; what is trained is kept in fp32 at least.
        seed: of everything random.
        task: the head to fine-tune with; None: the checkpoint's.
        initial: how a side network starts.
        backbone: whether the backbone is loaded; without it, activations come from the cache.
    """
    with returning(), Checkpoint(folder) as checkpoint:
        return build_trunk(checkpoint, spec, units, tuning, dtype, seed, task, initial, backbone)


def build_trunk(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    units: Sequence[str],
    tuning: Tuning,
    dtype: torch.dtype,
    seed: int = 0,
    task: TaskHead | None = None,
    initial: Initial = Initial.magnitude,
    backbone: bool = True,
) -> Trunk:
    """A device's units from an open checkpoint; see `load_trunk`."""
    spec = spec if task is None else task.applied(spec)
    source = Source(checkpoint, () if task is None else task.fresh)
    trained = Trained(spec, units, tuning, learning_dtype(dtype), seed)
    with torch.no_grad():
        weights = provider(source, spec, units, tuning, dtype, trained)
        held = [unit for unit in units if backbone or unit == "head"]
        stacks = {unit.partition(".")[0] for unit in held} & set(spec.stacks)
        tables = {stack: weights.tensor(f"{stack}.relative.weight") for stack in stacks}
        relative = {stack: table for stack, table in tables.items() if table is not None}
        network = Network(spec, load_units(weights, held), relative, weights.dtype)
        side = None
        if tuning.technique is Technique.parallel_adapter:
            begin = beginning(initial, source, spec, tuple(units), tuning, trained.dtype)
            side = Side(spec, units, tuning, trained, begin)
    return Trunk(spec, units, tuning, trained, network, side)
