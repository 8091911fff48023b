"""Fit what was measured: sums of known terms with coefficients that cannot be negative, by least relative errors.

A device is timed on shapes from small tiles to whole blocks, whose times differ a hundredfold. Relative errors let each
of them count alike; coefficients are times, so none is below zero (non-negative least squares; Lawson and Hanson,
"Solving Least Squares Problems", chapter 23, here by trying every support, of which three terms have seven).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgempi.cluster.profile import ElementTime, LinearTime


@dataclass(frozen=True)
class Product:
    """One timed linear layer: (rows, inputs) times (outputs, inputs) transposed."""

    rows: int
    outputs: int
    inputs: int
    seconds: float


@dataclass(frozen=True)
class Elements:
    """One timed operation whose work is counted in elements."""

    elements: float
    seconds: float


@dataclass(frozen=True)
class Residuals:
    """How far a fit is from what it was made of, as shares of what was measured."""

    median: float
    worst: float


def fit_linear(samples: Sequence[Product]) -> tuple[LinearTime, Residuals]:
    """What a linear layer takes: a call, its operations, and reading its weight once."""
    weights = np.array([s.outputs * s.inputs for s in samples], dtype=float)
    rows = np.array([s.rows for s in samples], dtype=float)
    terms = np.stack([np.ones_like(rows), 2 * rows * weights, weights], axis=1)
    found = LinearTime(*_least(terms, [s.seconds for s in samples]))
    return found, residuals([(found.seconds(s.rows, s.outputs, s.inputs), s.seconds) for s in samples])


def fit_elements(samples: Sequence[Elements]) -> tuple[ElementTime, Residuals]:
    """What an elementwise operation takes: a call, and its elements."""
    elements = np.array([s.elements for s in samples], dtype=float)
    found = ElementTime(*_least(np.stack([np.ones_like(elements), elements], axis=1), [s.seconds for s in samples]))
    return found, residuals([(found.seconds(s.elements), s.seconds) for s in samples])


def residuals(pairs: Sequence[tuple[float, float]]) -> Residuals:
    """Of (fitted, measured) pairs."""
    errors = [abs(fitted / measured - 1) for fitted, measured in pairs]
    return Residuals(median(errors), max(errors))


def _least(terms: NDArray[np.float64], seconds: Sequence[float]) -> list[float]:
    """The coefficients (K), none negative, of the terms (samples, K) with the least sum of squared relative errors."""
    relative = terms / np.array(seconds)[:, None]
    scale = np.linalg.norm(relative, axis=0)  # a call counts in ones, operations in billions
    columns = relative / scale
    K = columns.shape[1]
    best, best_error = np.zeros(K), float("inf")
    for support in map(list, chain.from_iterable(combinations(range(K), size) for size in range(1, K + 1))):
        found, *_ = np.linalg.lstsq(columns[:, support], np.ones(len(seconds)), rcond=None)
        error = float(np.sum((columns[:, support] @ found - 1) ** 2))
        if found.min() >= 0 and error < best_error:
            best, best_error = np.zeros(K), error
            best[support] = found
    return [float(coefficient) for coefficient in best / scale]
