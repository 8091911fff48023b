"""The Galaxy experiments: what is asked of the real command line, and tables whose arithmetic is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import cycle, islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgempi.config.load import compose, group_options

ROOT = Path(__file__).parents[2]


@pytest.fixture
def galaxy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiments' package; `benchmarks` is run from the repository's root and not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return import_module("benchmarks.galaxy.__main__")


def timed(seconds: dict[str, float], devices: int = 2, predicted: float = 1.1) -> dict[str, Any]:
    """What a `time` cell leaves, each way having taken so many seconds."""
    ways = []
    for name, taken in seconds.items():
        rank = {"host": "x", "hidden": 0.9, "peak_bytes": 1000, "predicted_bytes": 1100}
        measured = {
            "latency_s": {"p20": 0.9 * taken, "p50": taken, "p80": 1.1 * taken}, "rounds_s": [taken, taken],
            "compute_floor_s": 0.5 * taken, "wire_floor_s": 0.8 * taken, "over_floor": 1.25, "overlap": "ring",
            "relative_error": 0.004, "same_argmax": 0.995, "ranks": [rank] * devices,
        }  # fmt: skip
        ways.append(
            {
                "name": name, "measured": measured, "misfit": None, "subtiles": 2, "sharing": "hybrid", "wire": "fp32",
                "predicted": {"total_s": predicted * taken}, "predicted_off": predicted - 1, "speed_up": {"p50": 1.0},
            }
        )  # fmt: skip
    return {
        "speeds": {"before": {"x": 1.0, "y": 1.0}, "after": {"x": 0.99, "y": 1.03}, "attempts": 1},
        "ways": ways, "devices": ["x"] * devices, "time_scale": 2.0, "memory_scale": 1.0, "link_bits_per_s": 250e6,
    }  # fmt: skip


def record(cell: Any, result: dict[str, Any]) -> dict[str, Any]:
    """A record as `write_record` leaves it."""
    meta = {"cpu": "a processor", "cores": 2, "packages": {"torch": "2"}}
    return {"run": {"parameters": cell.parameters, "commit": "abc", "time": "0"}, "result": result, "meta": meta}


def test_every_cell_is_a_configuration(galaxy: Any) -> None:
    """Clusters, experiments and settings are there, and a group's choice is some cell's or `none`."""
    clusters, labs = ({getattr(cell, name) for cell in galaxy.CELLS} for name in ("cluster", "lab"))
    ways = {(cell.settings, cell.way) for cell in galaxy.CELLS}
    count = max(len(clusters), len(labs), len(ways))
    each = zip(*(islice(cycle(kind), count) for kind in (clusters, labs, ways)), strict=True)
    for cluster, lab, (settings, way) in each:
        config = compose(["task=bench", f"cluster={cluster}", *lab, *settings, "model.path=x"])
        assert bool(config.bench.ways) == (not way)
    assert sorted(group_options()["experiment"]) == sorted([*galaxy.TABLES, "none"])


def test_published_cells_are_measured(galaxy: Any) -> None:
    published = import_module("benchmarks.galaxy.published")
    places = {(cell.model, cell.cluster) for cell in galaxy.CELLS if cell.table == "homogeneous" and not cell.way}
    assert places == {place for place, figures in published.HOMOGENEOUS.items() if figures[0] != published.OOM}


def test_homogeneous_table(galaxy: Any) -> None:
    tables = import_module("benchmarks.galaxy.tables")
    cells = [c for c in galaxy.CELLS if (c.table, c.model, c.cluster) == ("homogeneous", "gpt2_large", "lab_a")]
    taken = {
        "M-LM": 3.0, "SP": 2.5, "hybrid": 2.0, "heads": 2.4, "one device": 1.9, "auto": 2.0, "auto int8": 1.5,
    }  # fmt: skip
    records = [
        record(c, {"killed": ["x"] if c.way == "SP" else [], "misfit": "too much" if c.way == "SP" else None})
        if c.way
        else record(c, timed(taken))
        for c in cells
    ]
    (row,) = tables._homogeneous(records)
    assert row["ours over M-LM"] == "1.50"
    assert row["ours over SP"] == "1.25 OOM*"
    assert (row["heads (whole MLPs) over M-LM"], row["heads over SP"]) == ("1.25", "1.04 OOM*")
    assert row["devices' speed, after"] == "-1..+3 %"
    assert (row["published over M-LM"], row["published over SP"]) == ("1.31", "OOM")
    assert row["auto, int8 allowed"] == "2.00"
    assert "SP: yes (yes)" in row["out of memory (the planner's word)"]
    assert "hybrid: no (no)" in row["out of memory (the planner's word)"]
    text = tables.page("homogeneous", records)
    assert "+5.3 % slower" in text  # 2.0 beside one device's 1.9
    assert "off by 10.0 % in the median" in text
    assert "a processor, 2 cores" in text and "abc" in text and "2 of 36" in text


def test_scaling(galaxy: Any) -> None:
    """Strong: one device's time over ours; weak: the same, as a share of linear."""
    tables = import_module("benchmarks.galaxy.tables")
    for table, said in (("strong", "3.20x"), ("weak", "320 %")):
        cells = [c for c in galaxy.CELLS if (c.table, c.model) == (table, "opt_xl")]
        assert all("cluster.lab.time_scale=1" in cell.lab for cell in cells)
        results = [timed({"one device": 8.0}, 1)]
        results += [timed({"M-LM": 4.0, "hybrid": 2.5, "heads": 2.0}, int(c.length / 96) or 4) for c in cells[1:]]
        results[-1]["devices"] = ["x"] * 4
        rows = tables.TABLES[table][1]([record(*pair) for pair in zip(cells, results, strict=True)])
        assert [row["hybrid"] for row in rows][1:] == [said] * (len(cells) - 1)
        assert rows[0]["one device ms"] == "8000"
        assert rows[-1]["published, 4 devices"]


def test_bandwidth_names_the_best_baseline_and_the_best_cell(galaxy: Any) -> None:
    tables = import_module("benchmarks.galaxy.tables")
    cells = [c for c in galaxy.CELLS if (c.table, c.model) == ("bandwidth", "bert_large")][:2]
    taken = [{"M-LM": 4.0, "SP": 2.0, "one device": 3.0, "auto": 1.5, "auto int8": auto} for auto in (1.0, 1.2)]
    records = [record(cell, timed(ways)) for cell, ways in zip(cells, taken, strict=True)]
    rows = tables._bandwidth(records)
    assert rows[0]["best baseline"] == "2000 ms (SP)"
    assert (rows[0]["auto: below it by"], rows[0]["auto int8: below it by"]) == ("25 %", "50 %")
    assert rows[0]["heads: below it by"] == "-"
    assert "`auto int8` is 50 % below" in tables.page("bandwidth", records)


def test_report(galaxy: Any, tmp_path: Path) -> None:
    """A page and a picture for every experiment; cells that were not measured are left out."""
    records = []
    known = {table: list(compose(["task=bench", f"experiment={table}"]).bench.ways) for table in galaxy.TABLES}
    for cell in galaxy.CELLS:
        if cell.way:
            records.append(record(cell, {"killed": [], "misfit": None, "ranks": []}))
        else:
            records.append(
                record(cell, timed(dict.fromkeys(known[cell.table], 1.0), "mabc".find(cell.cluster[-1]) + 1 or 2))
            )
    galaxy.write_report(galaxy.CELLS, records[:-1], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{table}.{kind}" for table in galaxy.TABLES for kind in ("md", "png")} | {"README.md"}
    summary = (tmp_path / "README.md").read_text()
    assert "10.0 %, 10.0 %" in summary  # predicted latency
    assert "1.25 to 1.25" in summary
    fits = sum(bool(cell.way) for cell in galaxy.CELLS) - 1
    assert f"{fits} of {fits}" in summary
    for table in galaxy.TABLES:
        assert f"![{table}]({table}.png)" in (tmp_path / f"{table}.md").read_text()


def drawn(rank: int, lane: str, name: str, start_ms: float, stop_ms: float, nbytes: int = 0) -> dict[str, Any]:
    """A slice of a trace."""
    about = {"args": {"bytes": nbytes, "peer": 1 - rank}} if nbytes else {}
    when = {"ts": 1e3 * start_ms, "dur": 1e3 * (stop_ms - start_ms)}
    return {"ph": "X", "pid": rank, "tid": 0, "cat": lane, "name": name, **when, **about}


def a_layer(rank: int, name: str, start_ms: float, nbytes: int) -> list[dict[str, Any]]:
    """30 ms of products, 4 ms of waiting, 10 ms of other work; what is awaited is sent in the middle of the wait."""
    stop_ms = start_ms + 44
    return [
        drawn(rank, "compute", name, start_ms, stop_ms),
        drawn(rank, "compute", "qkv own", start_ms, start_ms + 10),
        drawn(rank, "wait", name, start_ms + 10, start_ms + 14),
        drawn(rank, "compute", "qkv of 1", start_ms + 14, start_ms + 34),
        drawn(rank, "send", name, start_ms + 12, start_ms + 13, nbytes),
        drawn(rank, "send", name, start_ms + 20, start_ms + 21, nbytes),
        drawn(rank, "receive", name, start_ms, start_ms + 14, nbytes),
        drawn(rank, "receive", name, start_ms, stop_ms, nbytes),
    ]


def test_a_trace_says_what_is_hidden(galaxy: Any) -> None:
    """Two ranks, two passes of two layers; what happens outside of the layers does not count."""
    nbytes, bits_per_s = 1448 * 100, 8 * 1514 * 100 / 0.020  # a message takes 20 ms, a layer 40 ms
    events = [{"ph": "M", "pid": 0, "tid": 0, "ts": 0, "name": "process_name", "args": {"name": "x"}}]
    for rank in (0, 1):
        for start_ms in (100.0, 1000.0):
            events += [
                drawn(rank, "wait", "enc.embed", start_ms - 50, start_ms),
                drawn(rank, "send", "enc.embed", start_ms - 50, start_ms, 10**6),
                drawn(rank, "receive", "enc.embed", start_ms - 50, start_ms, 10**6),
                *a_layer(rank, "enc.0", start_ms, nbytes),
                *a_layer(rank, "enc.1", start_ms + 44, nbytes),
                drawn(rank, "wait", "head", start_ms + 300, start_ms + 350),
            ]
    read_trace = import_module("benchmarks.galaxy.hidden").read_trace
    seen = read_trace({"traceEvents": events}, bits_per_s, 1)
    assert seen["hidden"] == pytest.approx([1 - 2 / 40] * 2)
    assert seen["idle_s"] == pytest.approx([0.002] * 2)
    assert seen["passes"] == 2
    assert seen["tile_transfer_s"] == pytest.approx(0.020)
    assert seen["tile_compute_s"] == pytest.approx(0.030 / (2 * 2))  # two products that communicate, two tiles in each
    assert seen["layer_s"] == pytest.approx(0.044)
    assert seen["computed_s"] == pytest.approx(0.040)
    assert seen["wire_s"] == pytest.approx(0.040)
    assert seen["unhideable_s"] == pytest.approx(0.030 / 2 + 0.010)
    assert seen["over_wire"] == pytest.approx(44 / 65)
    fast = read_trace({"traceEvents": events}, bits_per_s * 100, 1)
    assert fast["hidden"] == [0.0, 0.0], "waiting for more than the wire takes is not hidden at all"


def test_overlap_table(galaxy: Any) -> None:
    overlap = import_module("benchmarks.galaxy.overlap")
    cell = next(c for c in galaxy.CELLS if c.table == "overlap")
    result = timed({"blocking": 2.0, "ring": 1.0, "heads": 1.0})
    seen = {
        "hidden": [0.9, 0.8],
        "idle_s": [0.0, 0.001],
        "layer_s": 0.1,
        "computed_s": 0.09,
        "wire_s": 0.08,
        "unhideable_s": 0.02,
        "over_wire": 1.0,
        "passes": 3,
    }
    for way, compute_s in zip(result["ways"][1:], (0.01, 0.03), strict=True):
        way["traced"] = {**seen, "tile_compute_s": compute_s, "tile_transfer_s": 0.02}
    records = [record(cell, result)]
    ring, heads = overlap.overlap_rows(records)
    assert (ring["longer"], ring["layer over (wire + un-hideable tile)"]) == ("transfer", "1.00")
    assert (heads["longer"], heads["layer over (wire + un-hideable tile)"]) == ("computation", "-")
    assert ring["hidden %, by rank"] == "90, 80"
    said = overlap.promises(records)
    assert "80 % of the transfers are hidden at least" in said[1]
    assert "at most 1.00 x" in said[2]
    assert len(said) == 3
    result["ways"][1]["traced"]["computed_s"] = 0.125  # more than wire and tile together
    said = overlap.promises([record(cell, result)])
    assert "a layer takes - (wire" in said[2]
    assert "In 1 of these 1" in said[3]
    assert "at most 0.80 x its computation" in said[3]


def test_peaks_count_where_a_way_ran_alone(galaxy: Any) -> None:
    reading = import_module("benchmarks.galaxy.reading")
    alone, beside = (next(c for c in galaxy.CELLS if c.table == t and not c.way) for t in ("table1", "overlap"))
    records = [record(alone, timed({"one device": 1.0}, 1)), record(beside, timed({"ring": 1.0, "blocking": 1.0}))]
    assert reading.peak_off(records) == pytest.approx([0.1])


def test_fits_come_last_and_labs_change_seldom(galaxy: Any) -> None:
    cells = galaxy.chosen(galaxy._parse([]))
    ways = [bool(cell.way) for cell in cells]
    assert ways == sorted(ways)
    labs = [(cell.cluster, cell.lab) for cell in cells if cell.way]
    assert sum(a != b for a, b in pairwise(labs)) == len(set(labs)) - 1
    tables = dict.fromkeys("strong" if cell.table == "weak" else cell.table for cell in cells if not cell.way)
    assert list(tables) == [table for table in galaxy.TABLES if table != "weak"]


def test_a_graphics_card_has_a_column(galaxy: Any) -> None:
    """Measured here by the processor: the row needs a card, the arithmetic does not."""
    result = import_module("benchmarks.galaxy.gpu").measure_gpu("tiny", 1, 5, "cpu")
    cells = import_module("benchmarks.galaxy.cells").gpu_cells()
    rows = import_module("benchmarks.galaxy.tables")._table1([record(cells[0], result)])
    assert rows[0]["ours, GPU, 64 tokens"].endswith(" ms (cpu)")
    assert rows[1]["ours, GPU, 64 tokens"] == "-"


def test_cells_are_measured_once(galaxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of the same commit stands for its cell; another commit's does not; a failure is told at the end."""
    measured: list[Any] = []

    class Shop:
        def __init__(self, *about: object) -> None:
            pass

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *about: object) -> None:
            pass

        def measure(self, cell: Any) -> dict[str, Any]:
            measured.append(cell)
            if cell.model == "opt_l":
                raise import_module("benchmarks.workshop").CellError("it broke")
            return timed({"blocking": 2.0, "ring": 1.0})

    monkeypatch.setattr(galaxy, "workshop", Shop)
    monkeypatch.setattr(import_module("benchmarks.resume"), "commit", lambda: "abc")
    monkeypatch.setattr(import_module("benchmarks.record"), "commit", lambda: "abc")
    folders = ["--output", str(tmp_path), "--results", str(tmp_path / "results")]
    words = ["--only", "overlap", "--clusters", "lab_a", *folders]
    assert galaxy.main(words) == 0
    assert len(measured) == 3
    assert galaxy.main(words) == 0
    assert len(measured) == 3
    assert galaxy.main([*words, "--again", "--layers", "2"]) == 0
    assert [cell.layers for cell in measured[3:]] == [2, 2, 2]
    monkeypatch.setattr(import_module("benchmarks.resume"), "commit", lambda: "def")
    assert galaxy.main(words) == 0
    assert len(measured) == 9
    assert (
        galaxy.main(["--only", "homogeneous", "--no-fits", "--clusters", "lab_a", "--models", "opt_l", *folders]) == 1
    )
    assert json.loads(next((tmp_path / "records").iterdir()).read_text())["run"]["experiment"] == "galaxy"


def test_a_workshop_keeps_one_lab_and_tells_a_kill_from_a_failure(
    galaxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, workshop = import_module("benchmarks.galaxy.measure"), import_module("benchmarks.workshop")
    said: list[list[str]] = []
    kills: dict[str, int] = {"a": 0}
    dies = fails = False

    def edgempi(*words: str) -> None:
        said.append(list(words))
        where = [Path(word.partition("=")[2]) for word in words if word.startswith("hydra.run.dir=")]
        if words[0] == "profile":
            saved = next(word for word in words if word.startswith("task.save="))
            Path(saved.partition("=")[2]).touch()
        if words[0] == "bench":
            where[0].mkdir(parents=True)
            (where[0] / "job.yaml").write_text("payload: {ways: [{misfit: too much}]}")
            ranks = [{"host": "a", "peak_bytes": 1, "predicted_bytes": 2, "more": 3}]
            (where[0] / "result.json").write_text(json.dumps({"ways": [{"measured": {"ranks": ranks}}]}))
            kills["a"] += dies
            if dies or fails:
                raise measure.CellError("status 137")

    lab: list[str] = []
    rates = [1.0]

    @contextmanager
    def hold(what: str) -> Iterator[None]:
        yield

    def bring_up(lan: Any, kept: bool) -> Any:
        assert kept
        lab.append("up")
        return state

    def retune(up: Any) -> tuple[dict[str, float], Any]:
        lab.append("retune")
        return {"a": rates.pop(0) if len(rates) > 1 else rates[0]}, state

    monkeypatch.setattr(measure, "edgempi", edgempi)
    monkeypatch.setattr(workshop, "hold", hold)
    monkeypatch.setattr(workshop, "bring_up", bring_up)
    monkeypatch.setattr(workshop, "retune", retune)
    monkeypatch.setattr(measure, "_profiled_speeds", lambda path: {"a": 1.0})
    monkeypatch.setattr(workshop, "tear_down", lambda: lab.append("down"))
    monkeypatch.setattr(measure, "isolated", lambda *call: None)
    monkeypatch.setattr(measure.Cgroups, "of_machine", lambda: SimpleNamespace(kills=lambda host: kills[host]))
    state = SimpleNamespace(lan=SimpleNamespace(hosts=["a"]), as_dict=lambda: {"up": True}, speeds={"a": 1.01})
    for module in (measure, workshop):
        monkeypatch.setattr(module, "read_state", lambda: state)
    timed_cell, fit_cell = (
        next(cell for cell in galaxy.CELLS if cell.table == "homogeneous" and bool(cell.way) == fit)
        for fit in (False, True)
    )
    with measure.workshop(tmp_path, 3) as shop:
        kept = shop.measure(timed_cell)
        assert kept["speeds"] == {"before": {"a": 1.01}, "after": {"a": 1.0}, "attempts": 1}
        assert lab == ["up", "retune", "retune"]  # after the profile, and after the job
        shop.measure(timed_cell)
        assert lab == ["up", "retune", "retune", "retune"]
        assert [words[0] for words in said] == ["profile", "bench", "bench"]
        assert "task.repeats=3" in said[-1]
        assert any(word.startswith("cluster.profile=") for word in said[-1])
        rates = [0.8, 0.94, 0.85, 1.0]
        drifted = shop.measure(timed_cell)
        assert drifted["speeds"] == {"before": {"a": 1.01}, "after": {"a": 0.94}, "attempts": 3}, "the best of three"
        rates = [0.8, 0.96, 1.0]
        assert shop.measure(timed_cell)["speeds"]["attempts"] == 2
        assert [words[0] for words in said] == ["profile"] + 7 * ["bench"]
        lab.clear()
        lives = shop.measure(fit_cell)
        assert lab == ["up"]  # with other settings
        assert lives["killed"] == [] and lives["ranks"] == [{"host": "a", "peak_bytes": 1, "predicted_bytes": 2}]
        dies = True
        dead = shop.measure(fit_cell)
        assert dead["killed"] == ["a"] and dead["misfit"] == "too much"
        dies, fails = False, True
        with pytest.raises(measure.CellError):
            shop.measure(fit_cell)
    assert lab == ["up", "down"]
