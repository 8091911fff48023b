"""How pictures are drawn: one file each, and groups of bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

WIDTH, HEIGHT = 8.0, 4.0
DPI = 130


def picture(path: Path, paint: Callable[[Axes], None]) -> None:
    """Paint one picture into a file."""
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    paint(axes)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def bars(axes: Axes, labels: Sequence[str], heights: Mapping[str, Sequence[Any]]) -> None:
    """Groups of bars, one of each kind; zero says that there is none.

    Args:
        axes: to paint on.
        labels: of the groups.
        heights: of each kind, by its name, one for each group.
    """
    thickness = 0.8 / len(heights)
    for index, (name, own) in enumerate(heights.items()):
        middle = [at + (index - (len(heights) - 1) / 2) * thickness for at in range(len(labels))]
        axes.bar(middle, own, thickness, label=name)
    axes.set_xticks(range(len(labels)), labels, fontsize=6)
    axes.legend(fontsize=7)
