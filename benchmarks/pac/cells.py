"""What is measured: the cells of every table, as data.

steps    updates timed by `edgempi finetune` on the emulated LAN, under the real memory limit; where no plan fits it,
         the planner's word is the result
fit      a run that the planner refuses, under the real limit: whether the kernel kills a rank
held     what a device holds, on this machine without a limit
score    a run to its end on this machine, and its score
plan     what the planner chooses
count    operations, counted
linears  the backbone's products, packed and by torch's stock kernel
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pac.published import BATCH, TASKS
from benchmarks.shapes import PAC, SHAPES

CLUSTER, LOCAL = "lab_pac", "local1"
LIFTED = ("cluster.lab.memory_limit=false",)
UNSHAPED = (*LIFTED, "cluster.lab.bandwidth_bits_per_s=null")
"""Whether a run fits does not depend on how fast it is."""
BACKBONE = "backbone"
"""The small encoder that the experiments train themselves."""
SEEDS = (0, 1, 2)
LONG, LONGER = TASKS["mrpc"].epochs, TASKS["mrpc"].samples
"""Epochs and rows of the task for which most plans are made."""
FEW, MORE = 3, 9
"""Mini-batches of the runs that go on from the cache: what moves in between is a line over them."""
STEPS = 4
"""Updates of a run that is timed; the first one is not counted."""
SCORED_ROWS, HELD_OUT_ROWS = 2_000, 2_000
CACHES = ("fp32", "bf16", "int8", "int8_projected")


@dataclass(frozen=True)
class Cell:
    """One figure or run.

    Attributes:
        table: the experiment that it belongs to.
        kind: see above.
        model: of `benchmarks/shapes.py`, `BACKBONE`, or the folder of a real one.
        row: what it is called in its table.
        settings: of `edgempi finetune`.
        rows: to train on.
        cluster, lab: the emulated devices, and settings of their LAN.
        layers: of each stack.
        task: a task of GLUE, or none for rows that are only timed.
        seed: of data, order and start.
        glue: the folder of the real tasks; empty: made-up ones.
        profiled: whether plans come from measured times.
    """

    table: str
    kind: str
    model: str
    row: str
    settings: tuple[str, ...] = ()
    rows: int = 0
    cluster: str = CLUSTER
    lab: tuple[str, ...] = ()
    layers: int = 0
    task: str = ""
    seed: int = 0
    glue: str = ""
    profiled: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """All that its result depends on, in JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def technique(self) -> str:
        """By edgempi's name; its sizes are those of the configuration of that name."""
        return chosen(self.settings, "technique")

    @property
    def system(self) -> str:
        """By edgempi's name."""
        return chosen(self.settings, "system")


def chosen(settings: Sequence[str], group: str) -> str:
    """What the settings choose of a group; empty where they do not."""
    return next((word.partition("=")[2] for word in settings if word.startswith(f"{group}=")), "")


def steps(table: str, model: str, row: str, settings: tuple[str, ...], **more: Any) -> Cell:
    """A `steps` cell."""
    common = (f"finetune_data.batch={BATCH}",) if not any("finetune_data.batch=" in word for word in settings) else ()
    return Cell(table, "steps", model, row, (*settings, *common), layers=SHAPES[model].layers, **more)


def training(technique: str, system: str, epochs: int = LONG) -> tuple[str, ...]:
    """Settings of a run that stops after `STEPS` updates."""
    return (
        f"technique={technique}", f"system={system}", f"optimizer.epochs={epochs}", f"optimizer.max_steps={STEPS}"
    )  # fmt: skip


def from_cache(technique: str, batches: int, cache: str = "bf16", system: str = "pac") -> tuple[str, ...]:
    """Settings of a run through a first epoch of so many mini-batches, and `STEPS` updates and more from the cache."""
    return (
        f"technique={technique}", f"system={system}", f"cache={cache}", "system.after=redistribute",
        f"optimizer.epochs={LONG}", f"optimizer.max_steps={batches + STEPS}",
    )  # fmt: skip


ROWS: tuple[tuple[str, str], ...] = tuple(
    (technique, system)
    for technique, systems in (
        ("full", ("standalone", "ecofl", "eddl")),
        ("adapter", ("standalone", "ecofl", "eddl", "asteroid")),
        ("lora", ("standalone", "ecofl", "eddl", "asteroid")),
        ("parallel_adapter", ("standalone",)),
    )
    for system in systems
)
"""Of the hours table, without PAC; Asteroid's rows, and the last one, are ours."""
FIRST, SINGLE, SIDE = "first epoch", "single epoch", "side network alone"
REFUSED = (("t5_base", "full", "eddl"), ("bart_large", "full", "eddl"), ("t5_large", "lora", "eddl"))
"""Rows that the planner refuses, and that are run to see."""


def hours() -> Iterator[Cell]:
    """System x technique x model, and what PAC's phases take."""
    for model in PAC:
        for technique, system in ROWS:
            if system == "asteroid" and model != "t5_large":
                continue  # where a device holds the model, its plan is EDDL's
            yield steps("hours", model, technique, training(technique, system), rows=LONGER, profiled=True)
        pac = {"rows": LONGER, "profiled": True}
        yield steps("hours", model, FIRST, training("parallel_adapter", "pac"), **pac)
        yield steps("hours", model, SINGLE, training("parallel_adapter", "pac", epochs=1), **pac)
        for batches in (FEW, MORE):
            settings = from_cache("parallel_adapter", batches)
            yield steps("hours", model, f"cached, {batches}", settings, rows=batches * BATCH, profiled=True)
        quarter = BATCH // 4
        alone = (*from_cache("parallel_adapter", FEW, system="standalone"), f"finetune_data.batch={quarter}")
        yield steps("hours", model, SIDE, alone, rows=FEW * quarter, lab=LIFTED)
        yield Cell("hours", "linears", model, "linears")
    for model, technique, system in REFUSED:
        settings = (*training(technique, system), f"finetune_data.batch={BATCH}")
        layers = SHAPES[model].layers
        yield Cell("hours", "fit", model, technique, settings, FEW * BATCH, lab=UNSHAPED, layers=layers)


def memory() -> Iterator[Cell]:
    """What T5-Large takes, by technique, on one device that holds all of it."""
    model, sgd = "t5_large", ("optimizer=sgd", "optimizer.rate=1e-4")
    alone = ("system=standalone", f"optimizer.epochs={LONG}", f"finetune_data.batch={BATCH}")
    common = {"layers": SHAPES[model].layers, "cluster": LOCAL}
    for technique in ("full", "adapter", "lora", "parallel_adapter"):
        settings = (f"technique={technique}", *alone, *sgd, "optimizer.max_steps=2")
        yield Cell("memory", "held", model, technique, settings, 2 * BATCH, **common)
    for row, optimizer in (("cached", sgd), ("cached, AdamW", ("optimizer=adamw",))):
        settings = ("technique=parallel_adapter", *alone, "cache=bf16", "system.after=redistribute", *optimizer)
        yield Cell("memory", "held", model, row, settings, BATCH, **common)


def flops() -> Iterator[Cell]:
    """Operations of a mini-batch, by technique."""
    for model in PAC:
        yield Cell("flops", "count", model, "operations", layers=SHAPES[model].layers)


SCORED: dict[str, tuple[str, ...]] = {
    "full": ("technique=full",),
    "adapter": ("technique=adapter",),
    "lora": ("technique=lora",),
    "parallel_adapter": ("technique=parallel_adapter", "cache=none"),
    "parallel_adapter, cached": ("technique=parallel_adapter", "cache=bf16"),
}
SCORED_UNCACHED, SCORED_CACHED = "parallel_adapter", "parallel_adapter, cached"
CONTROL, PROJECTED = "shuffled labels", "none, projected"


def accuracy(model: str = BACKBONE, glue: str = "") -> Iterator[Cell]:
    """Technique x task x seed, and a control from whose labels nothing can be learned."""
    for task, about in TASKS.items():
        epochs = about.epochs if glue else LONG
        for seed in SEEDS:
            for row, settings in SCORED.items():
                yield _score("accuracy", model, row, (*settings, f"optimizer.epochs={epochs}"), task, seed, glue)
        if not glue:
            settings = (*SCORED["parallel_adapter"], f"optimizer.epochs={LONG}")
            yield _score("accuracy", model, CONTROL, settings, task, 0, "")


def ablation() -> Iterator[Cell]:
    """The cache's form: bytes and times at T5-Large's width, scores on the made-up tasks (some are `accuracy`'s)."""
    for cache in CACHES:
        settings = from_cache(_reader(cache), FEW, cache)
        yield steps("ablation", "t5_large", cache, settings, rows=FEW * BATCH)
    for task in TASKS:
        for seed in SEEDS:
            for row, technique, cache in (
                (PROJECTED, "parallel_adapter_fixed", "none"),
                *((cache, _reader(cache), cache) for cache in CACHES if cache != "bf16"),
            ):
                settings = (f"technique={technique}", f"cache={cache}", f"optimizer.epochs={LONG}")
                yield _score("ablation", BACKBONE, row, settings, task, seed, "")


def scaling() -> Iterator[Cell]:
    """One to four devices."""
    for devices in (1, 2, 3, 4):
        lab = tuple(f"~cluster.devices.board{number}" for number in range(devices, 4))
        for system in ("ecofl", "eddl"):
            yield steps("scaling", "t5_base", f"{system}, {devices}", training("lora", system), rows=LONGER, lab=lab)
        settings = from_cache("parallel_adapter", FEW)
        yield steps("scaling", "t5_base", f"pac, {devices}", settings, rows=FEW * BATCH, lab=lab)


def grouping() -> Iterator[Cell]:
    """Which devices share which layers, by model and number of epochs."""
    for model in PAC:
        for task in ("mrpc", "sst2"):
            about = TASKS[task]
            settings = (
                "technique=parallel_adapter", "system=pac", f"optimizer.epochs={about.epochs}",
                f"finetune_data.batch={BATCH}",
            )  # fmt: skip
            yield Cell(
                "grouping", "plan", model, task, settings, about.samples, layers=SHAPES[model].layers, profiled=True
            )


def real(model: str, glue: str) -> list[Cell]:
    """The accuracy table's cells for a real model and the folder of GLUE."""
    return list(accuracy(model, glue))


def _score(table: str, model: str, row: str, settings: tuple[str, ...], task: str, seed: int, glue: str) -> Cell:
    common = ("system=standalone", f"finetune_data.batch={BATCH if glue else 2 * BATCH}")
    rows = 0 if glue else SCORED_ROWS
    return Cell(table, "score", model, row, (*settings, *common), rows, LOCAL, task=task, seed=seed, glue=glue)


def _reader(cache: str) -> str:
    """The technique that reads a cache of this form."""
    return "parallel_adapter_fixed" if cache == "int8_projected" else "parallel_adapter"


CELLS: list[Cell] = [*hours(), *memory(), *flops(), *accuracy(), *ablation(), *scaling(), *grouping()]
TABLES = list(dict.fromkeys(cell.table for cell in CELLS))
