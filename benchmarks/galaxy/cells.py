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
DEPTH = {"distilbert": 6, "bert_large": 4, "gpt2_large": 2, "opt_l": 2, "opt_xl": 2, "tiny": 2}
"""Layers of `time` cells, where a table does not need other ones."""
LIFTED = ("cluster.lab.memory_limit=false",)
FAST = ("cluster.lab.bandwidth_bits_per_s=1e+09", "cluster.lab.time_scale=1")
"""The fastest links; at the devices' own pace, since to shape more would take from the processors what devices need."""
NOMINAL = 125e6
PER_DEVICE = 96
"""Tokens of each device under weak scaling."""
GPU = "gpu"
"""The cluster, and the way, of cells that a graphics card runs."""
FITS = {
    "M-LM": ("parallel=tensor",),
    "SP": ("parallel=sequence",),
    "hybrid": ("parallel=hybrid", "parallel.overlap=ring"),
    "heads": ("parallel=heads", "parallel.overlap=ring"),
}
FIT_SCALES = {"lab_m": 4, "lab_a": 4, "lab_b": 2.5, "lab_c": 2}
"""Whether a program fits does not depend on how fast it is: as fast as this machine can make so many devices."""


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
    """The lab's links at a rate before `time_scale`; its own rate needs no word, so that labs are shared."""
    return () if bits_per_s == NOMINAL else (f"cluster.lab.bandwidth_bits_per_s={bits_per_s:g}",)


def timed(
    table: str,
    model: str,
    cluster: str,
    lab: tuple[str, ...] = (),
    length: int = LENGTH,
    layers: int | None = None,
    repeats: int | None = None,
) -> Cell:
    """A `time` cell, with the depth of `DEPTH` and as many rounds as the experiment says where no others are given."""
    settings = [f"experiment={table}"] + ([] if repeats is None else [f"task.repeats={repeats}"])
    return Cell(table, model, layers or DEPTH[model], "fp32", cluster, length, (*LIFTED, *lab), tuple(settings))


def fit(table: str, model: str, cluster: str, way: str, length: int = LENGTH) -> Cell:
    """A `fit` cell."""
    lab = (f"cluster.lab.time_scale={FIT_SCALES[cluster]}", "cluster.lab.bandwidth_bits_per_s=null")
    return Cell(table, model, SHAPES[model].layers, "bf16", cluster, length, lab, FITS[way], way)


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
    times = [
        timed("homogeneous", model, cluster)
        for (model, cluster), figures in HOMOGENEOUS.items()
        if any(isinstance(figure, float) for figure in figures)
    ]
    return times + [fit("homogeneous", model, cluster, way) for way in FITS for model, cluster in HOMOGENEOUS]


def _heterogeneous() -> list[Cell]:
    berts = [timed("heterogeneous", "bert_large", cluster) for cluster in ("lab_d", "lab_e", "lab_f")]
    return [*berts, timed("heterogeneous", "gpt2_large", "lab_f")]


def _bandwidth() -> list[Cell]:
    sweeps = {"bert_large": (25e6, 50e6, NOMINAL, 250e6, 500e6, 1000e6), "gpt2_large": (50e6,)}
    return [
        timed("bandwidth", model, "lab_b", bandwidth(rate), layers=2, repeats=5)
        for model, rates in sweeps.items()
        for rate in rates
    ]


def _scaling() -> list[Cell]:
    several = ("lab_a", "lab_b", "lab_c")
    strong = [_alone("strong", "opt_xl", LENGTH)]
    strong += [timed("strong", "opt_xl", cluster, FAST, repeats=3) for cluster in several]
    weak = [_alone("weak", model, PER_DEVICE) for model in ("gpt2_large", "opt_xl")]
    places = [("gpt2_large", "lab_a", 2), ("gpt2_large", "lab_c", 4), ("opt_xl", "lab_c", 4)]
    weak += [timed("weak", model, lab, FAST, PER_DEVICE * devices, repeats=3) for model, lab, devices in places]
    return [*strong, *weak]


def _alone(table: str, model: str, length: int) -> Cell:
    """What a model takes on one device, for the scaling tables."""
    lab = (*LIFTED, *FAST)
    return Cell(table, model, DEPTH[model], "fp32", "lab_m", length, lab, ("experiment=table1", "task.repeats=3"))


def _overlap() -> list[Cell]:
    return [
        timed("overlap", "bert_large", cluster, bandwidth(rate), layers=3, repeats=3)
        for cluster in ("lab_a", "lab_b", "lab_c")
        for rate in (50e6, NOMINAL, 500e6)
    ]


def _ablation() -> list[Cell]:
    return [timed("ablation", "bert_large", cluster, layers=2) for cluster in ("lab_b", "lab_f")]


CELLS: list[Cell] = [
    *_homogeneous(), *_heterogeneous(), *_bandwidth(), *_scaling(), *_overlap(), *_ablation(), *_table1()
]  # fmt: skip
TABLES = list(dict.fromkeys(cell.table for cell in CELLS))
