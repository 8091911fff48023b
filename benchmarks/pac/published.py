"""What was published of PAC, as plain numbers: the figures that ours stand beside.

Sources: arXiv 2408.10746 (ICPP 2024), tables on memory, time and quality, as slides about it show them. Rows are keyed
by technique and system, in edgempi's names; figures stand in the order of `TASKS`.
"""

from __future__ import annotations

from dataclasses import dataclass

OOM = "OOM"
GIB = 2**30
"""The slides' GB: 737.7 million numbers of 4 bytes are 2.75 of it."""


@dataclass(frozen=True)
class Work:
    """A task of the tables: what it is called, and how long it trains."""

    name: str
    samples: int
    epochs: int


TASKS = {
    "mrpc": Work("MRPC", 3_668, 3),
    "stsb": Work("STS-B", 5_749, 3),
    "sst2": Work("SST-2", 67_349, 1),
    "qnli": Work("QNLI", 104_743, 1),
}
"""Training rows of GLUE, and epochs."""
MODELS = {"t5_base": "T5-Base", "bart_large": "BART-Large", "t5_large": "T5-Large"}
TECHNIQUES = {
    "full": "Full", "adapter": "Adapters", "lora": "LoRA", "parallel_adapter": "Parallel Adapters",
}  # fmt: skip
SYSTEMS = {
    "standalone": "Standalone", "ecofl": "Eco-FL", "eddl": "EDDL", "asteroid": "Asteroid", "pac": "PAC",
}  # fmt: skip
BATCH, LENGTH = 16, 128
"""Rows of a mini-batch, and tokens of a row."""

Figures = tuple[float | str, ...]
_NONE: Figures = (OOM,) * 4

HOURS: dict[tuple[str, str], dict[str, Figures]] = {
    ("full", "standalone"): {"t5_base": _NONE, "bart_large": _NONE, "t5_large": _NONE},
    ("full", "ecofl"): {
        "t5_base": (0.45, 0.71, 2.74, 4.32), "bart_large": (2.41, 3.78, 14.56, 22.98), "t5_large": _NONE,
    },
    ("full", "eddl"): {"t5_base": _NONE, "bart_large": _NONE, "t5_large": _NONE},
    ("adapter", "standalone"): {"t5_base": (1.21, 1.9, 7.29, 11.51), "bart_large": _NONE, "t5_large": _NONE},
    ("adapter", "ecofl"): {
        "t5_base": (0.39, 0.61, 2.35, 3.71), "bart_large": (0.54, 0.85, 3.27, 5.16),
        "t5_large": (2.75, 4.31, 16.59, 26.19),
    },
    ("adapter", "eddl"): {"t5_base": (0.34, 0.53, 2.06, 3.25), "bart_large": _NONE, "t5_large": _NONE},
    ("lora", "standalone"): {"t5_base": (1.21, 1.89, 7.28, 11.49), "bart_large": _NONE, "t5_large": _NONE},
    ("lora", "ecofl"): {
        "t5_base": (0.41, 0.64, 2.45, 3.87), "bart_large": (0.55, 0.87, 3.33, 5.26),
        "t5_large": (2.73, 4.28, 16.48, 26.02),
    },
    ("lora", "eddl"): {"t5_base": (0.31, 0.48, 1.86, 2.94), "bart_large": _NONE, "t5_large": _NONE},
    ("parallel_adapter", "pac"): {
        "t5_base": (0.14, 0.22, 1.34, 2.12), "bart_large": (0.29, 0.45, 2.69, 4.25),
        "t5_large": (0.69, 1.09, 8.88, 14.02),
    },
}  # fmt: skip
"""Hours of a whole fine-tuning, by model."""

MEMORY_GIB: dict[str, tuple[float, float, float, float]] = {
    "full": (2.75, 5.33, 2.75, 10.83),
    "adapter": (2.80, 4.04, 0.05, 6.89),
    "lora": (2.78, 4.31, 0.04, 7.13),
    "inference": (2.75, 0.0, 0.0, 2.75),
}
"""T5-Large, 16 rows of 128 tokens: weights, activations with the optimizer's state, gradients, and their sum."""
CACHED_GIB = 1.28
"""What Parallel Adapters train in from the cache: 88.16 % below `full`, the paper's figure."""
BEST_SPEED_UP = 8.64
"""The most over a standalone row, one device beside all of them."""

ACCURACY: dict[str, dict[str, tuple[float, ...]]] = {
    "full": {
        "t5_base": (89.71, 90.94, 94.03, 93.08), "bart_large": (88.16, 91.10, 95.64, 94.40),
        "t5_large": (92.78, 91.08, 95.30, 93.30),
    },
    "adapter": {
        "t5_base": (88.73, 90.51, 93.58, 93.04), "bart_large": (86.63, 90.24, 94.93, 93.27),
        "t5_large": (91.86, 90.58, 96.10, 94.07),
    },
    "lora": {
        "t5_base": (86.27, 90.73, 93.69, 93.30), "bart_large": (87.46, 90.36, 95.23, 94.48),
        "t5_large": (90.27, 92.08, 95.53, 94.18),
    },
    "parallel_adapter": {
        "t5_base": (88.24, 90.43, 93.46, 93.25), "bart_large": (87.71, 90.54, 95.25, 93.68),
        "t5_large": (91.7, 91.57, 95.76, 93.7),
    },
}  # fmt: skip
"""Scores in percent."""
