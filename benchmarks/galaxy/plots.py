"""One picture for each experiment, from the same records as its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.galaxy import published
from benchmarks.galaxy.published import ENVIRONMENTS
from benchmarks.galaxy.reading import Record, nominal, ratio, scaled, seconds, timed
from benchmarks.pictures import bars, picture


def draw(table: str, records: Sequence[Record], path: Path) -> bool:
    """Draw an experiment's picture; whether there was anything to draw."""
    cells = timed(records)
    if not cells:
        return False
    picture(path, lambda axes: _PICTURES[table](axes, cells))
    return True


def _table1(axes: Axes, cells: Sequence[Record]) -> None:
    labels = [f"{r['run']['parameters']['model']}\n{r['run']['parameters']['length']} tokens" for r in cells]
    ours = [(seconds(record, "one device") or 0) * record["result"]["time_scale"] for record in cells]
    theirs = [published.NANO_S[record["run"]["parameters"]["model"]] for record in cells]
    bars(axes, labels, {"ours, at full scale": ours, "published (length not stated)": theirs})
    axes.set_ylabel("latency of one Nano-M, s")


def _speed_ups(names: Sequence[str], reference: str) -> Callable[[Axes, Sequence[Record]], None]:
    def paint(axes: Axes, cells: Sequence[Record]) -> None:
        heights = {name: [ratio(record, reference, name) or 0 for record in cells] for name in names}
        if reference == "M-LM" and cells[0]["run"]["parameters"]["table"] == "homogeneous":
            places = [(r["run"]["parameters"]["model"], r["run"]["parameters"]["cluster"]) for r in cells]
            figures = [published.HOMOGENEOUS[key][0] for key in places]
            heights = {"published": [f if isinstance(f, float) else 0 for f in figures], **heights}
        bars(axes, [_label(record) for record in cells], heights)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel(f"times as fast as {reference}")

    return paint


def _bandwidth(axes: Axes, cells: Sequence[Record]) -> None:
    styles = dict(zip(dict.fromkeys(r["run"]["parameters"]["model"] for r in cells), ("-", "--", ":"), strict=False))
    names = list(dict.fromkeys(one["name"] for record in cells for one in record["result"]["ways"]))
    for model, style in styles.items():
        own = sorted((r for r in cells if r["run"]["parameters"]["model"] == model), key=nominal)
        for index, name in enumerate(names):
            points = [(nominal(r) / 1e6, taken) for r in own if (taken := seconds(r, name)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{index}", marker="o", label=f"{model}, {name}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("link, Mbit/s (nominal)")
    axes.set_ylabel("latency, s")
    axes.legend(fontsize=6, ncols=2)


def _scaling(weak: bool) -> Callable[[Axes, Sequence[Record]], None]:
    def paint(axes: Axes, cells: Sequence[Record]) -> None:
        for model in dict.fromkeys(record["run"]["parameters"]["model"] for record in cells):
            own = [record for record in cells if record["run"]["parameters"]["model"] == model]
            for name in ("M-LM", "hybrid", "heads", "auto"):
                found = [(len(r["result"]["devices"]), scaled(cells, r, name, weak)) for r in own]
                points = [(n, gain) for n, gain in found if gain is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", label=f"{model}, {name}")
        axes.plot([1, 4], [1, 1] if weak else [1, 4], color="black", linewidth=0.8, label="linear")
        axes.set_xticks([1, 2, 3, 4])
        axes.set_xlabel("devices")
        axes.set_ylabel("share of linear" if weak else "times as fast as one device")
        axes.legend(fontsize=7)

    return paint


def _overlap(axes: Axes, cells: Sequence[Record]) -> None:
    labels = [f"{_label(record)}\n{nominal(record) / 1e6:g} Mbit/s" for record in cells]
    bars(
        axes, labels, {name: [seconds(record, name) or 0 for record in cells] for name in ("blocking", "ring", "heads")}
    )
    axes.set_ylabel("latency, s")


def _ablation(axes: Axes, cells: Sequence[Record]) -> None:
    names = [one["name"] for one in cells[0]["result"]["ways"]]
    heights = {
        _label(record).replace("\n", ", "): [ratio(record, "blocking", name) or 0 for name in names] for record in cells
    }
    bars(axes, [name.replace(", ", ",\n") for name in names], heights)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("times as fast as blocking")


def _label(record: Record) -> str:
    asked = record["run"]["parameters"]
    return f"{asked['model']}\n{ENVIRONMENTS.get(asked['cluster'], asked['cluster']).partition(' ')[0]}"


_PICTURES: dict[str, Callable[[Axes, Sequence[Record]], None]] = {
    "table1": _table1,
    "homogeneous": _speed_ups(("hybrid", "heads", "auto", "auto int8"), "M-LM"),
    "heterogeneous": _speed_ups(("hybrid", "heads", "galaxy planner", "auto", "auto int8"), "M-LM"),
    "bandwidth": _bandwidth,
    "strong": _scaling(weak=False),
    "weak": _scaling(weak=True),
    "overlap": _overlap,
    "ablation": _ablation,
}
