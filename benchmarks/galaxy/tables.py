"""From records to Markdown: for every experiment the published figure beside ours, and how ours was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.galaxy import published
from benchmarks.galaxy.cells import GPU
from benchmarks.galaxy.overlap import overlap_rows, promises
from benchmarks.galaxy.phrases import as_published, in_seconds, marked, over_floor
from benchmarks.galaxy.published import OOM
from benchmarks.galaxy.reading import (
    BASELINES,
    SPEEDS,
    Record,
    auto_behind,
    latency_off,
    nominal,
    out_of_memory,
    peak_off,
    place,
    ratio,
    saved,
    scaled,
    seconds,
    speeds,
    timed,
    way,
)
from benchmarks.phrases import DASH, in_ms, listed, machines, number, percent
from benchmarks.reduce import markdown


def page(table: str, records: Sequence[Record]) -> str:
    """An experiment's page."""
    title, rows = TABLES[table]
    made = rows(records)
    parts = [f"# {title}", markdown(made) if made else "Nothing was measured."]
    cells = timed(records)
    if any(len(record["result"]["ways"]) > 2 for record in cells):
        parts += [
            "All ways, in ms (times as fast as the first; +- from the 20th to the 80th percentile):",
            markdown(_all_ways(cells)),
        ]
    parts += [*_best_saving(cells), *promises(cells), *_checks(cells), *_memory_check(records)]
    return "\n\n".join([*parts, _how(records)]) + "\n"


def _table1(records: Sequence[Record]) -> list[dict[str, str]]:
    rows = []
    for model in published.NANO_S:
        times = {
            record["run"]["parameters"]["length"]: record
            for record in timed(records)
            if record["run"]["parameters"]["model"] == model
        }
        killed = out_of_memory(records, model, "lab_m", "hybrid")
        others = [r for r in records if r["run"]["parameters"]["way"] and r["run"]["parameters"]["model"] == model]
        fits = [record for record in others if record["run"]["parameters"]["way"] != GPU]
        gpus = [record["result"] for record in others if record["run"]["parameters"]["way"] == GPU]
        rows.append(
            {
                "model": model,
                "layers": ", ".join(sorted({place(record)["layers"] for record in times.values()})) or DASH,
                "published Nano-M": in_seconds(published.NANO_S[model]),
                "ours, 284 tokens": OOM if killed else _nano(times.get(284)),
                "ours, 64 tokens": OOM if killed else _nano(times.get(64)),
                "published memory": f"{published.MEMORY_BYTES[model] / 1e6:.0f} MB",
                "ours, bf16": "killed" if killed else _peaks(fits),
                "planner": DASH if not fits else ("too much" if fits[-1]["result"]["misfit"] else "fits"),
                "published A100": f"{published.A100_S[model] * 1e3:.0f} ms",
                "ours, GPU, 64 tokens": _card(gpus[-1]) if gpus else DASH,
                SPEEDS: ", ".join(speeds(record) for record in times.values()) or DASH,
            }
        )
    return rows


def _homogeneous(records: Sequence[Record]) -> list[dict[str, str]]:
    rows = []
    for record in timed(records):
        asked = record["run"]["parameters"]
        key = (asked["model"], asked["cluster"])
        over_mlm, over_sp = published.HOMOGENEOUS[key]
        killed = {name: out_of_memory(records, *key, name) for name in ("M-LM", "SP", "hybrid", "heads")}
        rows.append(
            {
                **place(record),
                "published over M-LM": as_published(over_mlm),
                "ours over M-LM": marked(ratio(record, "M-LM", "hybrid"), killed["M-LM"] or killed["hybrid"]),
                "heads (whole MLPs) over M-LM": marked(
                    ratio(record, "M-LM", "heads"), killed["M-LM"] or killed["heads"]
                ),
                "published over SP": as_published(over_sp),
                "ours over SP": marked(ratio(record, "SP", "hybrid"), killed["SP"] or killed["hybrid"]),
                "heads over SP": marked(ratio(record, "SP", "heads"), killed["SP"] or killed["heads"]),
                "auto over M-LM": number(ratio(record, "M-LM", "auto")),
                "auto, int8 allowed": number(ratio(record, "M-LM", "auto int8")),
                "its latency over its floor": over_floor(way(record, "auto int8")),
                "out of memory (the planner's word)": _verdicts(records, *key),
                SPEEDS: speeds(record),
            }
        )
    return rows


def _heterogeneous(records: Sequence[Record]) -> list[dict[str, str]]:
    return [
        {
            **place(record),
            "published over M-LM": f"up to {published.HETEROGENEOUS}x",
            "hybrid, equal shares": number(ratio(record, "M-LM", "hybrid")),
            "heads (whole MLPs), equal shares": number(ratio(record, "M-LM", "heads")),
            "galaxy planner": number(ratio(record, "M-LM", "galaxy planner")),
            "auto": number(ratio(record, "M-LM", "auto")),
            "auto, int8 allowed": number(ratio(record, "M-LM", "auto int8")),
            SPEEDS: speeds(record),
        }
        for record in timed(records)
    ]


def _bandwidth(records: Sequence[Record]) -> list[dict[str, str]]:
    rows = []
    for record in timed(records):
        best = min((name for name in BASELINES if seconds(record, name)), key=lambda name: seconds(record, name) or 0)
        row = {**place(record), "Mbit/s (nominal)": f"{nominal(record) / 1e6:g}"}
        row["best baseline"] = f"{in_ms(seconds(record, best))} ms ({best})"
        for name in ("hybrid", "heads", "auto", "auto int8"):
            row[f"{name}: below it by"] = percent(saved(record, name))
        row["published"] = f"up to {100 * published.BANDWIDTH:.0f} %"
        row[SPEEDS] = speeds(record)
        rows.append(row)
    return rows


def _best_saving(cells: Sequence[Record]) -> list[str]:
    """In which cell of a sweep the planner saves most."""
    found = [
        (share, name, record)
        for record in cells
        for name in ("auto", "auto int8")
        if (share := saved(record, name)) is not None
    ]
    if not found or cells[0]["run"]["parameters"]["table"] != "bandwidth":
        return []
    share, name, record = max(found, key=lambda one: one[0])
    where = f"{record['run']['parameters']['model']} at {nominal(record) / 1e6:g} Mbit/s"
    return [f"Best cell: `{name}` is {percent(share)} below the best baseline ({where})."]


def _strong(records: Sequence[Record]) -> list[dict[str, str]]:
    return _scaling(records, {"opt_xl": published.STRONG}, weak=False)


def _weak(records: Sequence[Record]) -> list[dict[str, str]]:
    return _scaling(records, published.WEAK, weak=True)


def _scaling(records: Sequence[Record], figures: Mapping[str, float], weak: bool) -> list[dict[str, str]]:
    rows = []
    cells = timed(records)
    for record in cells:
        asked = record["run"]["parameters"]
        devices = len(record["result"]["devices"])
        row = {**place(record), "tokens": str(asked["length"]), "one device ms": in_ms(seconds(record, "one device"))}
        for name in ("M-LM", "hybrid", "heads", "auto"):
            gain = scaled(cells, record, name, weak)
            row[name] = DASH if gain is None else (f"{100 * gain:.0f} %" if weak else f"{gain:.2f}x")
        figure = figures[asked["model"]]
        row["published, 4 devices"] = (f"{100 * figure:.0f} %" if weak else f"{figure:.2f}x") if devices == 4 else ""
        row[SPEEDS] = speeds(record)
        rows.append(row)
    return rows


def _ablation(records: Sequence[Record]) -> list[dict[str, str]]:
    rows = []
    for record in timed(records):
        for one in record["result"]["ways"]:
            found = way(record, one["name"])
            if found is None:
                continue
            measured = found["measured"]
            rows.append(
                {
                    **place(record),
                    "way": one["name"],
                    "ms": in_ms(measured["latency_s"]["p50"]),
                    "times as fast as blocking": number(ratio(record, "blocking", one["name"])),
                    "over its floor": over_floor(found),
                    "relative error": f"{measured['relative_error']:.1e}",
                    "same argmax": f"{100 * measured['same_argmax']:.1f} %",
                    SPEEDS: speeds(record),
                }
            )
    return rows


def _all_ways(cells: Sequence[Record]) -> list[dict[str, str]]:
    names = list(dict.fromkeys(one["name"] for record in cells for one in record["result"]["ways"]))
    rows = []
    for record in cells:
        row = {**place(record), "Mbit/s (nominal)": _rate(record)}
        row["tokens"] = str(record["run"]["parameters"]["length"])
        for name in names:
            found = way(record, name)
            row[name] = DASH if found is None else _cell(found)
        rows.append(row)
    return rows


def _rate(record: Record) -> str:
    return DASH if record["result"]["link_bits_per_s"] is None else f"{nominal(record) / 1e6:g}"


def _cell(found: Mapping[str, Any]) -> str:
    latency = found["measured"]["latency_s"]
    spread = 50 * (latency["p80"] - latency["p20"]) / latency["p50"]
    chose = f"; {found['sharing']}, {found['wire']}" if found["name"].startswith("auto") else ""
    return f"{in_ms(latency['p50'])} ({found['speed_up']['p50']:.2f}x, +-{spread:.0f} %{chose})"


def _checks(cells: Sequence[Record]) -> list[str]:
    """What the planner promised: nothing is faster than `auto`, and times are as predicted."""
    parts = []
    losses = [loss for record in cells if (loss := auto_behind(record)) is not None]
    if losses:
        parts.append(f"`auto` (fp32) beside the best fixed way: at worst {100 * max(losses):+.1f} % slower.")
    off = [abs(share) for share in latency_off(cells)]
    if off:
        parts.append(
            f"Predicted latency: off by {100 * median(off):.1f} % in the median, {100 * max(off):.1f} % at worst, "
            f"over {len(off)} figures."
        )
    lossy = [found["measured"] for record in cells if (found := way(record, "auto int8")) is not None]
    if lossy:
        parts.append(
            f"With int8 allowed the output is off by at most {100 * max(m['relative_error'] for m in lossy):.2f} % "
            f"(norm), and at least {100 * min(m['same_argmax'] for m in lossy):.1f} % of tokens keep their argmax."
        )
    return parts


def _memory_check(records: Sequence[Record]) -> list[str]:
    """Predicted peaks beside measured ones, where a way ran alone."""
    off = peak_off(records)
    if not off:
        return []
    return [f"Predicted peak memory, where a way ran alone: off by {100 * min(off):+.0f} % to {100 * max(off):+.0f} %."]


def _how(records: Sequence[Record]) -> str:
    """How it was measured."""
    scales = {r["result"]["time_scale"] for r in timed(records)}
    memory = {r["result"]["memory_scale"] for r in timed(records)}
    lines = [
        machines(records),
        f"Devices and links are {listed(scales)} times as fast as those published (`time_scale`), both alike; memory "
        f"budgets are multiplied by {listed(memory)} for fp32 weights (`memory_scale`) or, where several ways are "
        "timed in one job, lifted. Latencies are as measured, not scaled back. Depth is cut where the layers column "
        "says so, width never.",
        "Every device is calibrated to its nominal speed before a job and measured after it; where one was more than "
        "5 % off by then, the cell was measured again, and the attempt in which they kept their speed best is shown.",
        "Whether a way fits is decided by running it once, whole, with bf16 weights under the real limit: `OOM` is a "
        "rank killed by the kernel; `OOM*` beside a figure says that it was timed with the limit lifted.",
        "`auto` was planned for the depth that was timed, without a memory limit: whole, its plan may not fit. OPT-L "
        "has 32 heads, as published with the model; the slides say 16.",
    ]
    return "\n\n".join(lines)


def _verdicts(records: Sequence[Record], model: str, cluster: str) -> str:
    found = []
    for record in records:
        asked, result = record["run"]["parameters"], record["result"]
        if asked["way"] and (asked["model"], asked["cluster"]) == (model, cluster):
            measured, predicted = bool(result["killed"]), result["misfit"] is not None
            found.append(f"{asked['way']}: {'yes' if measured else 'no'} ({'yes' if predicted else 'no'})")
    return ", ".join(found) or DASH


def _nano(record: Record | None) -> str:
    """One device's time, and what that is on the device it stands for."""
    taken = None if record is None else seconds(record, "one device")
    if record is None or taken is None:
        return DASH
    scale = record["result"]["time_scale"]
    return f"{taken:.2f} s ({taken * scale:.2f} s at full scale)"


def _card(measured: Mapping[str, Any]) -> str:
    return f"{in_ms(measured['latency_s']['p50'])} ms ({measured['gpu']})"


def _peaks(fits: Sequence[Record]) -> str:
    peaks = [rank["peak_bytes"] for record in fits for rank in record["result"].get("ranks", [])]
    return f"{max(peaks) / 1e6:.0f} MB" if peaks else DASH


TABLES = {
    "table1": ("One Nano-M alone (Table I)", _table1),
    "homogeneous": ("Equal devices: speed-up of hybrid with overlap", _homogeneous),
    "heterogeneous": ("Unequal devices: speed-up over Megatron-LM", _heterogeneous),
    "bandwidth": ("Latency over bandwidth, three Nano-M", _bandwidth),
    "strong": ("Strong scaling", _strong),
    "weak": ("Weak scaling", _weak),
    "overlap": ("How much of the transfers is hidden", overlap_rows),
    "ablation": ("Ablation", _ablation),
}
"""Title and rows of each experiment."""
