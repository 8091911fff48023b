"""What is measured: the cells of every table, as data.

A cell is one job of `edgempi bench` on one emulated cluster, or a sweep of them where a table varies the link. `time`
cells time ways of sharing in turns, with fp32 weights, no memory limit, and the depth cut to what takes a minute or
two; `fit` cells run one way once, whole, in bf16, under the real memory limit: they decide what is out of memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.galaxy.published import HOMOGENEOUS, NANO_S
from benchmarks.shapes import SHAPES

LENGTH = 284
"""The mean length of the published workload, in tokens."""
DEPTH = {"distilbert": 6, "bert_large": 4, "gpt2_large": 4, "opt_l": 3, "opt_xl": 3, "tiny": 2}
"""Layers of `time` cells."""
LIFTED = ("cluster.lab.memory_limit=false",)
QUICK = ("cluster.lab.time_scale=2.5", "cluster.lab.bandwidth_bits_per_s=null")
"""Whether a program fits does not depend on how fast it is."""
GPU = "gpu"
"""The cluster, and the way, of cells that a graphics card runs."""
FITS = {
    "M-LM": ("parallel=tensor",),
    "SP": ("parallel=sequence",),
    "hybrid": ("parallel=hybrid", "parallel.overlap=ring"),
}


@dataclass(frozen=True)
class Cell:
    """One job.

    Attributes:
        table: the experiment that it belongs to.
        model, layers, dtype: the checkpoint (`benchmarks/shapes.py`).
        cluster: `conf/cluster/NAME.yaml`.
        length: tokens of the one row.
        lab: settings of the emulated LAN.
        settings: what to time; `experiment=NAME` or a way of its own.
        way: the way of a `fit` cell, or `GPU`; empty for a `time` cell.
    """

    table: str
    model: str
    layers: int
    dtype: str
    cluster: str
    length: int
    lab: tuple[str, ...]
    settings: tuple[str, ...]
    way: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """All that its result depends on, in JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def bandwidth(bits_per_s: float) -> tuple[str, ...]:
    """The lab's links at a rate before `time_scale`."""
    return (f"cluster.lab.bandwidth_bits_per_s={bits_per_s:g}",)


def timed(table: str, model: str, cluster: str, lab: tuple[str, ...] = (), length: int = LENGTH) -> Cell:
    """A `time` cell."""
    return Cell(table, model, DEPTH[model], "fp32", cluster, length, (*LIFTED, *lab), (f"experiment={table}",))


def fit(table: str, model: str, cluster: str, way: str, length: int = LENGTH) -> Cell:
    """A `fit` cell."""
    return Cell(table, model, SHAPES[model].layers, "bf16", cluster, length, QUICK, FITS[way], way)


def gpu_cells() -> list[Cell]:
    """Table I on this machine's GPU, for whoever has one."""
    return [Cell("table1", model, SHAPES[model].layers, "fp16", GPU, 64, (), (), GPU) for model in NANO_S]


def _table1() -> list[Cell]:
    fp32 = ("cluster.lab.memory_scale=2",)  # fp32 weights stand for bf16 ones, under a limit as real
    fitting = [model for model, latency in NANO_S.items() if isinstance(latency, float)]
    times = [
        Cell("table1", model, SHAPES[model].layers, "fp32", "lab_m", length, fp32, ("experiment=table1",))
        for model in fitting
        for length in (LENGTH, 64)
    ]
    return times + [fit("table1", model, "lab_m", "hybrid") for model in NANO_S]


def _homogeneous() -> list[Cell]:
    fits = [fit("homogeneous", model, cluster, way) for model, cluster in HOMOGENEOUS for way in FITS]
    return [timed("homogeneous", *place) for place in HOMOGENEOUS] + fits


def _heterogeneous() -> list[Cell]:
    clusters = ("lab_d", "lab_e", "lab_f")
    return [timed("heterogeneous", m, c) for c in clusters for m in ("bert_large", "gpt2_large")]


def _bandwidth() -> list[Cell]:
    sweeps = {"bert_large": (25e6, 50e6, 125e6, 250e6, 500e6, 1000e6), "gpt2_large": (25e6, 500e6)}
    return [timed("bandwidth", m, "lab_b", bandwidth(rate)) for m, rates in sweeps.items() for rate in rates]


def _scaling() -> list[Cell]:
    fast, clusters = bandwidth(1000e6), ("lab_m", "lab_a", "lab_b", "lab_c")
    strong = [timed("strong", "opt_xl", cluster, fast) for cluster in clusters]
    weak = [
        timed("weak", model, cluster, fast, 96 * devices)
        for model in ("gpt2_large", "opt_xl")
        for devices, cluster in enumerate(clusters, 1)
    ]
    return strong + weak


def _overlap() -> list[Cell]:
    return [
        timed("overlap", "bert_large", cluster, bandwidth(rate))
        for cluster in ("lab_a", "lab_b", "lab_c")
        for rate in (50e6, 125e6, 500e6)
    ]


def _ablation() -> list[Cell]:
    return [timed("ablation", "bert_large", cluster) for cluster in ("lab_b", "lab_f")]


CELLS: list[Cell] = [
    *_table1(), *_homogeneous(), *_heterogeneous(), *_bandwidth(), *_scaling(), *_overlap(), *_ablation()
]  # fmt: skip
TABLES = list(dict.fromkeys(cell.table for cell in CELLS))
