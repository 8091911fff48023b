"""How the side network starts, and random values for all techniques."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from math import sqrt

import torch
from torch import Tensor

from edgempi.plan.training.technique import Shape


class Initial(StrEnum):
    """How the side network starts."""

    magnitude = "magnitude"
    random = "random"
    blank = "blank"
    """Zeros: all of it is about to be loaded."""


Begin = Callable[[str, Shape, torch.Generator], Tensor]
"""Makes the start of `side.{name}`, given the name, its shape and a generator."""


def uniform(shape: Shape, generator: torch.Generator) -> Tensor:
    """A weight (N, K) with entries in +-1 / sqrt(K), torch's start of a linear layer and peft's of LoRA's A.

    Uniform draws come out alike on every processor.
    """
    bound = 1 / sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def blank(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    """Zeros."""
    return torch.zeros(shape)


def randomly(merge: bool) -> Begin:
    """Random weights, norms of one, biases and gates of zero; the way up is zero where it is added."""

    def begin(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape)
        if len(shape) == 1 or (merge and name == "up.weight"):
            return torch.zeros(shape)
        return uniform(shape, generator)

    return begin
