"""The experiments' index: every page, and what they shall reach, with what they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.pac import published
from benchmarks.pac.cells import FIRST, SINGLE
from benchmarks.pac.published import GIB, MODELS, TASKS, TECHNIQUES
from benchmarks.pac.reading import (
    ALONE,
    CACHED,
    COLLABORATIVE,
    TRAIN,
    Record,
    asked,
    cache_bytes,
    differences,
    find,
    gradient_floor_s,
    held,
    out_of_memory,
    pac_steps_s,
    predicted_off,
    side_s,
    speed_up,
    stock_step_s,
)
from benchmarks.pac.scored import scored_as, uncached
from benchmarks.pac.tables import TABLES
from benchmarks.phrases import DASH
from benchmarks.reduce import markdown

LARGEST = "t5_large"
SEVERAL, ONCE = "mrpc", "sst2"
"""Tasks that train for three epochs, and for one."""
ROUNDED = 0.005
"""By how much a figure of the slides may be off since it has two digits."""
LOSSY = {"int8": 0.26, "int8_projected": 0.035}
"""Forms of the cache, and what of the fp32 bytes they may take."""


@dataclass(frozen=True)
class Bar:
    """What is to be reached.

    Attributes:
        what: in words.
        figure: what was reached.
        bound: what was to be.
        least: whether the figure is to be at least the bound, or at most.
    """

    what: str
    figure: float
    bound: float
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.figure >= self.bound if self.least else self.figure <= self.bound

    @property
    def row(self) -> dict[str, str]:
        """Of the table."""
        bound = f"{'>=' if self.least else '<='} {self.bound:g}"
        return {"what": self.what, "figure": f"{self.figure:.3g}", "to be": bound, "met": "yes" if self.met else "no"}


def index(records: Mapping[str, Sequence[Record]]) -> str:
    """The page.

    Args:
        records: of each experiment that was measured.
    """
    links = "\n".join(f"- [{TABLES[table][0]}]({table}.md)" for table in records)
    rows = [bar.row for bar in every_bar(records)]
    parts = ["# PAC's fine-tuning experiments, emulated", links, markdown(rows) if rows else "", *_verdicts(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def every_bar(records: Mapping[str, Sequence[Record]]) -> list[Bar]:
    """What can be judged of these records."""
    makers: tuple[Callable[[Mapping[str, Sequence[Record]]], Iterator[Bar]], ...] = (
        _steps, _speed_ups, _memory, _caches, _predictions,
    )  # fmt: skip
    return [bar for make in makers for bar in make(records)]


def _steps(records: Mapping[str, Sequence[Record]]) -> Iterator[Bar]:
    """A cached step beside its floors, and beside a step of the first epoch."""
    timed = records.get("hours", ())
    taken = pac_steps_s(timed, LARGEST)
    cached, first, side = taken[CACHED], taken[FIRST], side_s(timed, LARGEST)
    record = find(timed, kind="steps", model=LARGEST, row=FIRST)
    if cached is None or record is None or out_of_memory(record):
        return
    name = MODELS[LARGEST]
    if side is not None:
        wire = gradient_floor_s(record)
        text = (
            f"{name}: a cached step over the larger of side network ({side:.2f} s) and gradients' wire ({wire:.2f} s)"
        )
        yield Bar(text, cached / max(side, wire), 1.25)
    stock = stock_step_s(timed, records.get("flops", ()), LARGEST)
    if stock is not None:
        yield Bar(f"{name}: a step of the first epoch with stock products over a cached one", stock / cached, 8.0, True)
    if first is not None:
        yield Bar(f"{name}: the same with packed products (8 is asked of stock ones)", first / cached, 8.0, True)


def _speed_ups(records: Mapping[str, Sequence[Record]]) -> Iterator[Bar]:
    timed = records.get("hours", ())
    for model, name in MODELS.items():
        for task, rows, whose, bound in (
            (SEVERAL, COLLABORATIVE, "the best collaborative LoRA or Adapters", 3.0),
            (SEVERAL, ALONE, "the best standalone row that fits", published.BEST_SPEED_UP),
            (ONCE, ALONE, "the best standalone row that fits", 5.4),
            (ONCE, COLLABORATIVE, "the best collaborative LoRA or Adapters", 1.0),
        ):
            found = speed_up(timed, model, rows, task)
            if found is not None:
                epochs = TASKS[task].epochs
                text = f"{name}: PAC over {whose}, {epochs} epoch{'s' * (epochs > 1)}"
                yield Bar(text, found, bound, True)


def _memory(records: Mapping[str, Sequence[Record]]) -> Iterator[Bar]:
    cells = {asked(record)["row"]: record for record in records.get("memory", ())}
    seen = held(cells["cached"], CACHED) if "cached" in cells else None
    if seen is not None:
        total = sum(seen[kind] for kind in ("weights", "activations", "optimizer", "gradients")) / GIB
        yield Bar("T5-Large: GiB of cached side-network training", total, published.CACHED_GIB)
    for technique in ("full", "adapter", "lora"):
        ours = held(cells[technique], TRAIN) if technique in cells else None
        if ours is None:
            continue
        weights, _, gradients, _ = published.MEMORY_GIB[technique]
        for kind, figure in (("weights", weights), ("gradients", gradients)):
            off = max(0.0, abs(ours[kind] / GIB - figure) - ROUNDED) / figure
            yield Bar(
                f"T5-Large, {TECHNIQUES[technique]}: {kind} off the slides' {figure:.2f}, beyond rounding, by",
                off,
                0.1,
            )


def _caches(records: Mapping[str, Sequence[Record]]) -> Iterator[Bar]:
    own = records.get("ablation", ())
    exact = find(own, kind="steps", row="fp32")
    for cache, bound in LOSSY.items():
        record = find(own, kind="steps", row=cache)
        if record is not None and exact is not None and not out_of_memory(record) and not out_of_memory(exact):
            yield Bar(
                f"{cache}: bytes of the cache over those in fp32", cache_bytes(record) / cache_bytes(exact), bound
            )
    for cache in ("bf16", *LOSSY):
        points = differences(own, scored_as(cache), uncached(cache))
        if points:
            off = max(abs(point) for point in points.values())
            yield Bar(f"{cache}: largest difference from uncached scores, in points", off, 0.3)


def _predictions(records: Mapping[str, Sequence[Record]]) -> Iterator[Bar]:
    timed = [r for r in records.get("hours", ()) if asked(r)["kind"] == "steps" and asked(r)["profiled"]]
    off = [abs(share) for record in timed for share in predicted_off(record)]
    if off:
        yield Bar(f"predicted steps off by, median of {len(off)} (worst {max(off):.2f})", median(off), 0.1)


def _verdicts(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """How often the planner was right about memory: what it lets through lives, what it refuses is killed."""
    own = records.get("hours", ())
    through = [r for r in own if asked(r)["kind"] == "steps" and r["result"]["misfit"] is None]
    lived = sum(not record["result"]["killed"] for record in through)
    refused = [r for r in own if asked(r)["kind"] == "fit" and r["result"]["misfit"] is not None]
    killed = sum(bool(record["result"]["killed"]) for record in refused)
    if not own:
        return []
    found = pac_steps_s(own, LARGEST)[SINGLE]
    text = (
        f"Of {len(through)} plans that fit by the planner's word {lived} lived under the real limit; of {len(refused)} "
    )
    text += f"that it refused {killed} were killed. "
    rate = DASH if found is None else f"{published.BATCH / found:.2f}"
    return [text + f"T5-Large's first epoch: {rate} samples/s; the slides' figures mean 2.11."]
