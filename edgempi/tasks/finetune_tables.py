"""What `edgempi finetune` prints when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from edgempi.tasks.tables import size, table
from edgempi.tasks.training_tables import print_training

PHASES = ("setup", "train", "switch", "cached", "evaluate", "save")
SHOWN_LOSSES = 8


def print_outcome(console: Console, result: Mapping[str, Any]) -> None:
    """The plan, what became of the rows, losses and figures, what each phase and device took, where files lie."""
    print_training(console, result["plan"])
    if result["assumed"]:
        console.print(f"{result['assumed']}\n", markup=False, highlight=False)
    for told in result["data"]["told"]:
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    _print_phases(console, result)
    _print_devices(console, result["ranks"])
    missing = sum(len(rank["moved"]["missing"]) for rank in result["ranks"] if rank["moved"])
    if missing:
        console.print(f"The cache had no room for {missing} samples: the backbone ran in every epoch.", highlight=False)
    if result["refilled_rows"]:
        console.print(
            f"The backbone ran apart for {result['refilled_rows']} samples that the cache lacked.", highlight=False
        )
    console.print(_losses(result["losses"]), highlight=False)
    if result["final"]:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result["final"].items() if value is not None)
        console.print(f"Last evaluation: {figures}.", highlight=False)
    if result["best"]:
        best = result["best"]
        console.print(f"Best {best['metric']}: {best['score']:.4g}, after update {best['step']}.", highlight=False)
    console.print(
        f"Ended ({result['ending']}); {result['trained']:,} parameters trained. What was trained: "
        f"{result['exported']}; metrics.json, metrics.csv and checkpoints: {result['folder']}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _print_phases(console: Console, result: Mapping[str, Any]) -> None:
    rows = []
    for name in PHASES:
        spent, step = result["phases"].get(name), result["steps"].get(name, {})
        if spent is not None:
            trained = spent["samples"] / spent["seconds"] if spent["samples"] and spent["seconds"] else None
            rows.append([
                name, f"{spent['seconds']:.2f} s", str(spent["updates"] or "-"), str(spent["samples"] or "-"),
                "-" if trained is None else f"{trained:.1f}", _ms(step.get("measured_s")), _ms(step.get("predicted_s")),
                size(spent["bytes_sent"]), f"{spent['waited_s']:.2f} s",
            ])  # fmt: skip
    columns = [
        "what", "time", "updates", "samples", "samples/s", "one step", "predicted", "sent", "waited (all ranks)"
    ]  # fmt: skip
    console.print(table("What the run spent", columns, rows))
    times = "assumed" if result["assumed"] else "measured"
    asked, mean = (" and ".join(_tokens(told)) for told in (result["work"], result["data"]["mean_tokens"]))
    console.print(
        f"A step is a mini-batch, the median one. It is predicted from {times} times for rows of {asked} tokens; "
        f"those of the run have {mean} on average.\n",
        highlight=False,
    )


def _tokens(told: Mapping[str, float]) -> list[str]:
    """Of each stack, the encoder's first."""
    return [f"{round(told[name], 1):g}" for name in ("memory_tokens", "tokens") if told[name]]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _print_devices(console: Console, ranks: Sequence[Mapping[str, Any]]) -> None:
    columns, rows = ["device", "host", "peak memory", "imports", "sent", "waited"], []
    caches = any(rank["cache"] for rank in ranks)
    for rank in ranks:
        row = [
            rank["device"], rank["host"], size(rank["peak_bytes"]), size(rank["import_bytes"]),
            size(rank["bytes_sent"]), f"{rank['waited_s']:.2f} s",
        ]  # fmt: skip
        if caches:
            moved, cache = rank["moved"], rank["cache"]
            sent = size(moved["body_bytes"]) if moved else "-"
            row += [size(cache["disk_bytes"]), str(cache["stored"]), sent, str(len(moved["missing"]) if moved else 0)]
        rows.append(row)
    more = ["cache on disk", "put", "moved", "missing"] if caches else []
    console.print(table("Devices (memory above imports)", [*columns, *more], rows, words=2))


def _losses(losses: Sequence[float]) -> str:
    """Some of the logged losses, first and last among them."""
    if not losses:
        return "No loss was logged."
    most = min(SHOWN_LOSSES, len(losses))
    places = sorted({round(i * (len(losses) - 1) / max(1, most - 1)) for i in range(most)})
    return "Losses as they were logged: " + ", ".join(f"{losses[place]:.4f}" for place in places) + "."
