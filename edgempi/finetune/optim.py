"""One update of the trained tensors: AdamW or SGD, learning rates by schedule, gradients clipped by their global norm.

The updates are torch's functional ones (its optimizer classes import a compiler: 70 MB and seconds for every process,
on devices that have neither to spare), and the schedules' factors those of `transformers.optimization`
(`get_constant_`, `linear_` and `cosine_schedule_with_warmup`), so that a run elsewhere can be repeated here. What is
our own is that the tensors of a model may lie on several devices, some on more than one: each is counted once in the
norm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from edgempi.errors import UserError
from edgempi.finetune.checkpoint.optimizer import optimizer_names
from edgempi.plan.training.technique import Technique

RATES = {Technique.full: 3e-4, Technique.lora: 3e-4, Technique.adapter: 3e-4, Technique.parallel_adapter: 3e-3}
"""Learning rates of AdamW: a side network's is that of LST (arXiv 2206.06522), the others' those of PAC's rows."""
UNDECAYED = frozenset({"bias", "norm", "q_norm", "k_norm", "relative"})
"""Words of the names of tensors that weight decay leaves alone, as in `transformers.Trainer`."""


class Method(StrEnum):
    """Which optimizer."""

    adamw = "adamw"
    sgd = "sgd"


class Schedule(StrEnum):
    """How the learning rate goes on after the warm-up: as it is, down to zero in a line, or in half a cosine."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(frozen=True)
class Optimizing:
    """How tensors are updated; what belongs to the other method is not read.

    Attributes:
        rate: the learning rate at its highest.
        warm_up: updates that lead up to it; below 1, their share of all updates.
        weight_decay: of matrices; norms, biases and gates have none. AdamW's is decoupled, SGD's added to the gradient.
        clip: the largest norm of all gradients together; None: any.
        momentum: of SGD.

    Raises:
        UserError: a number is out of its range.
    """

    method: Method = Method.adamw
    rate: float = RATES[Technique.parallel_adapter]
    schedule: Schedule = Schedule.linear
    warm_up: float = 0.1
    weight_decay: float = 0.0
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check("learning rate", self.rate, self.rate > 0, "above 0")
        whole = self.warm_up < 1 or self.warm_up == int(self.warm_up)
        _check("warm-up", self.warm_up, self.warm_up >= 0 and whole, "a share below 1, or a number of updates")
        _check("weight decay", self.weight_decay, self.weight_decay >= 0, "0 or above")
        _check("largest gradient norm", self.clip, self.clip is None or self.clip > 0, "above 0, or null for any")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        _check("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "from 0 to below 1")
        _check("eps", self.eps, self.eps > 0, "above 0")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is kept beside each tensor, in its shape; their number is `Costs.optimizer_copies`."""
        if self.method is Method.adamw:
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum else ()

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of update `step`, counted from 0, of `steps`; with a warm-up the first one's is 0."""
        return self.rate * factor(self.schedule, step, warm_up_steps(self.warm_up, steps), steps)


def default_rate(method: Method, technique: Technique) -> float:
    """The learning rate where none is given.

    Raises:
        UserError: for SGD, whose rate depends on how large gradients are.
    """
    _check("learning rate of sgd", "none", method is Method.adamw, "given")
    return RATES[technique]


def warm_up_steps(warm_up: float, steps: int) -> int:
    """How many updates lead up to the highest rate: `warm_up` itself, or below 1 its share of `steps`, rounded up."""
    return math.ceil(warm_up * steps) if warm_up < 1 else int(warm_up)


def factor(schedule: Schedule, step: int, warm_up: int, steps: int) -> float:
    """What the highest rate is multiplied with at update `step`, counted from 0, of `steps`."""
    if step < warm_up:
        return step / warm_up
    rest = max(1, steps - warm_up)
    match schedule:
        case Schedule.constant:
            return 1.0
        case Schedule.linear:
            return max(0.0, (steps - step) / rest)
        case Schedule.cosine:
            return max(0.0, 0.5 * (1 + math.cos(math.pi * ((step - warm_up) / rest))))


def decays(name: str, tensor: Tensor) -> bool:
    """Whether weight decay applies to a tensor: to matrices that are no table of relative positions."""
    return tensor.ndim > 1 and not UNDECAYED & set(name.split("."))


def counted(held: Sequence[Mapping[str, int]]) -> tuple[frozenset[str], ...]:
    """For each rank, the names that it counts in the norm: every name once, as much for one as for another.

    Args:
        held: for each rank, the elements of its tensors by name.
    """
    found: list[set[str]] = [set() for _ in held]
    load = [0] * len(held)
    sizes = {name: size for tensors in held for name, size in tensors.items()}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = min((rank for rank, tensors in enumerate(held) if name in tensors), key=lambda rank: (load[rank], rank))
        found[rank].add(name)
        load[rank] += sizes[name]
    return tuple(map(frozenset, found))


def global_norm(squares: Iterable[float]) -> float:
    """The norm of all gradients, from the ranks' sums of squares."""
    return math.sqrt(math.fsum(squares))


class Updater:
    """The optimizer of one device.

    Args:
        tensors: what it trains, by name; none is legal.
        settings: how.
        counts: the names that it counts in the norm (see `counted`); all by default.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], settings: Optimizing, counts: Collection[str] | None = None
    ) -> None:
        self.tensors, self.settings = tensors, settings
        self._counts = tensors.keys() if counts is None else counts
        self._kept: dict[str, Tensor] = {}  # by the name of its kind and the tensor's; made with the first update
        self._steps = 0
        self._aside: dict[str, Tensor] = {}

    def set_aside(self) -> None:
        """Add the gradients to those set aside, and forget them."""
        for name, tensor in self.tensors.items():
            if tensor.grad is not None:
                kept = self._aside.get(name)
                self._aside[name] = tensor.grad.clone() if kept is None else kept.add_(tensor.grad)
        self.forget()

    def bring_back(self) -> None:
        """Add what was set aside to the gradients."""
        for name, kept in self._aside.items():
            tensor = self.tensors[name]
            tensor.grad = kept if tensor.grad is None else tensor.grad.add_(kept)
        self._aside.clear()

    def squares(self) -> float:
        """The sum of squares of the gradients that this device counts; not finite where one of them is not."""
        found = [t.grad for name, t in self.tensors.items() if name in self._counts and t.grad is not None]
        norm = float(get_total_norm(found)) if found else 0.0
        return norm * norm

    def update(self, rate: float, norm: float) -> None:
        """Clip the gradients, which every tensor has, update the tensors, and forget the gradients.

        Args:
            rate: the learning rate.
            norm: of the gradients of all tensors of the model (`global_norm`).
        """
        clip = self.settings.clip
        if clip is not None and self.tensors and norm + 1e-6 > clip:
            dtype = next(iter(self.tensors.values())).dtype
            clip_grads_with_norm_(self.tensors.values(), clip, torch.tensor(norm, dtype=dtype))
        if not self._kept:
            self._kept = self.state()
        for decayed in (True, False):
            names = [name for name, tensor in self.tensors.items() if decays(name, tensor) is decayed]
            if names:
                self._step(names, rate, self.settings.weight_decay if decayed else 0.0)
        self._steps += 1
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def state(self) -> dict[str, Tensor]:
        """What is kept for each tensor, by name (`checkpoint.optimizer_names`); zeros before the first update."""
        if self._kept:
            return dict(self._kept)
        kinds = self.settings.kinds
        return {
            full: torch.zeros_like(tensor, requires_grad=False)
            for name, tensor in self.tensors.items()
            for full in optimizer_names([name], kinds)
        }

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what another updater kept.

        Args:
            state: as `state` gives it; what belongs to tensors that are not trained here is left out.
            steps: updates done.

        Raises:
            UserError: something is missing or of another shape: the state is of another model or optimizer.
        """
        kept: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            for full in optimizer_names([name], self.settings.kinds):
                found = state.get(full)
                if found is None or found.shape != tensor.shape:
                    raise UserError(
                        "optimizer state", value=f"no {full}" if found is None else f"{full} of shape {[*found.shape]}",
                        rule=f"{self.settings.method} keeps one of shape {[*tensor.shape]} for {name}",
                        remedy="Resume with the optimizer and the technique that the run began with",
                    )  # fmt: skip
                kept[full] = found.to(tensor, copy=True)
        self._kept, self._steps = kept, steps

    @torch.no_grad()
    def _step(self, names: Sequence[str], rate: float, weight_decay: float) -> None:
        """Update some of the tensors. Fused: each number is read and written once; on a slow device that is what it
        takes.
        """
        settings, tensors = self.settings, [self.tensors[name] for name in names]
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        assert len(gradients) == len(tensors), "every tensor has a gradient"
        kept = [[self._kept[full] for full in optimizer_names(names, [kind])] for kind in settings.kinds]
        if settings.method is Method.adamw:
            steps = [torch.tensor(float(self._steps)) for _ in names]  # counted on by torch, each by itself
            beta1, beta2 = settings.betas
            adamw(
                tensors, gradients, kept[0], kept[1], [], steps, fused=True, amsgrad=False, beta1=beta1, beta2=beta2,
                lr=rate, weight_decay=weight_decay, eps=settings.eps, maximize=False,
            )  # fmt: skip
            return
        moments: list[Tensor | None] = [*kept[0]] if kept else [None] * len(names)
        sgd(
            tensors, gradients, moments, fused=True, weight_decay=weight_decay, momentum=settings.momentum, lr=rate,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip


def _check(what: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(what, value=value, rule=f"it is {rule}", remedy="Correct the finetune settings")
