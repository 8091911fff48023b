"""The PAC experiments: what is asked of the real command line, and tables whose arithmetic is right."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from edgempi.config.load import compose

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pac(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiments' package; `benchmarks` is run from the repository's root and not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return import_module("benchmarks.pac.__main__")


def module(name: str) -> Any:
    """A module of the package."""
    return import_module(f"benchmarks.pac.{name}")


HELD = {"weights": 3 * 2**30, "gradients": 2**30, "optimizer": 2**29, "activations": 2**29, "peak": 5 * 2**30}
SPEEDS = {"before": {"board0": 1.0, "board1": 1.0}, "after": {"board0": 0.99, "board1": 1.03}, "attempts": 2}
LAB = {"lan": {"devices": [{"flops": 50e9}] * 4, "link_bits_per_s": 1e9}}


def ran(train_s: float, cached_s: float | None = None, switch_s: float = 0.0, disk: int = 0) -> dict[str, Any]:
    """What a run leaves whose updates took so long."""
    taken = {"train": train_s} | ({} if cached_s is None else {"cached": cached_s})
    rank = {
        "host": "board0", "peak_bytes": 10**9, "import_bytes": 1, "bytes_sent": 1, "waited_s": 0.0,
        "cache": {"disk_bytes": disk} if disk else None, "moved": None, "held": dict.fromkeys(taken, HELD),
    }  # fmt: skip
    return {
        "misfit": None, "killed": [], "trained": 10**6, "time_scale": 1.0, "lab": LAB, "ranks": [rank],
        "speeds": SPEEDS,
        "steps": {
            name: {"updates": 4, "first_s": 9.0, "step_s": {"p20": s, "p50": s, "p80": s}} for name, s in taken.items()
        },
        "spent": {"switch": {"seconds": switch_s}}, "predicted_s": {name: 1.1 * s for name, s in taken.items()},
        "final": {}, "continuation": "redistribute", "plan": {}, "assumed": None,
    }  # fmt: skip


def record(cell: Any, result: dict[str, Any]) -> dict[str, Any]:
    """A record as `write_record` leaves it."""
    meta = {"cpu": "a processor", "cores": 2, "packages": {"torch": "2"}}
    return {"run": {"parameters": cell.parameters, "commit": "abc", "time": "0"}, "result": result, "meta": meta}


def made_up(cell: Any) -> dict[str, Any]:
    """A result for any cell: steps of 8 s alone, 4 s together, PAC's of 2 s and 0.5 s, 3 s between its epochs."""
    cells = module("cells")
    match cell.kind:
        case "steps" if cell.table == "ablation":
            return ran(2.0, 0.5, 3.0, {"fp32": 1000, "bf16": 500, "int8": 255, "int8_projected": 34}[cell.row])
        case "steps" if cell.technique == "full" and cell.system != "ecofl":
            return {"misfit": "too much", "missing_bytes": 5, "told": None}
        case "steps" if cell.row == cells.SIDE:
            return ran(2.0, 0.4)
        case "steps" if "system.after=redistribute" in cell.settings:
            return ran(2.0, 0.5, 1.0 + cell.rows / 1000, 10)
        case "steps":
            return ran(2.0 if cell.system == "pac" else 8.0 if cell.system == "standalone" else 4.0)
        case "fit":
            return {"misfit": "too much", "killed": ["board0"], "ranks": []}
        case "held":
            return ran(1.0, 0.1 if "cached" in cell.row else None)
        case "score":
            lower = 0.2 if cell.row == "int8" else 0.0
            return {**ran(1.0), "score": 90.0 + cell.seed - lower, "figures": {"loss": 0.7, "rows": 2000}}
        case "linears":
            return {"stock_over_packed": {"p50": 2.5}}
        case "plan":
            row = {"device": "board0", "stage": 0, "layers": "embed enc 0-11 head", "rows": 16}
            return {
                "misfit": None,
                "told": {
                    "devices": {"train": [row]}, "phases": [{"microbatches": 4, "step_s": 2.0}], "total_s": 3600.0,
                    "continuation": "redistribute", "rejected": [],
                },
            }  # fmt: skip
    return module("counting").count("tiny_t5", 2)


@pytest.fixture
def records(pac: Any) -> dict[str, list[dict[str, Any]]]:
    """One of every cell, by table."""
    found: dict[str, list[dict[str, Any]]] = pac.gathered(
        pac.CELLS, [record(cell, made_up(cell)) for cell in pac.CELLS]
    )
    return found


def test_every_cell_is_a_configuration(pac: Any) -> None:
    """Settings are there; rows are timed on the lab, and scored on this machine."""
    runs = [cell for cell in pac.CELLS if cell.kind not in ("count", "linears")]
    labs = {(cell.cluster, cell.lab) for cell in runs}
    settings = {cell.settings for cell in runs}
    for (cluster, lab), words in zip(cycle(labs), settings, strict=False):
        config = compose(["task=finetune", f"cluster={cluster}", *lab, *words])
        assert (config.cluster.lab is not None) == (cluster == "lab_pac")
        assert config.system.name.value == module("cells").chosen(words, "system")
    assert len({json.dumps(cell.parameters, sort_keys=True) for cell in pac.CELLS}) == len(pac.CELLS)
    assert list(module("tables").TABLES) == pac.TABLES


def test_the_lab_is_what_planners_assume(pac: Any) -> None:
    """53 GFLOP/s each, described and emulated alike; what is left out for fewer devices is left out."""
    from edgempi.lab.layout import describe
    from edgempi.plan.training.assumed import FLOPS_PER_S, LINK_BITS_PER_S

    cluster = compose(["cluster=lab_pac", "~cluster.devices.board3"]).cluster
    lan = describe(cluster)
    scale = cluster.lab.time_scale
    assert [device.flops for device in lan.devices] == pytest.approx([53e9 * scale] * 3)
    assert {device.speed * FLOPS_PER_S for device in cluster.devices.values()} == {53e9}
    assert lan.link_bits_per_s == pytest.approx(LINK_BITS_PER_S * scale)


def test_published_rows_are_measured(pac: Any) -> None:
    published, cells = module("published"), module("cells")
    assert set(published.HOURS) <= {*cells.ROWS, module("reading").PAC}
    assert all(set(figures) == set(published.MODELS) for figures in published.HOURS.values())


def test_hours(pac: Any, records: dict[str, list[dict[str, Any]]]) -> None:
    """Steps times epochs; PAC's are a first epoch, what lies between by a line over samples, and cached epochs."""
    reading, own = module("reading"), records["hours"]
    assert reading.hours(own, "t5_base", ("lora", "eddl"), "mrpc") == pytest.approx(3 * 230 * 4 / 3600)
    assert reading.hours(own, "t5_base", ("full", "eddl"), "mrpc") == "OOM"
    between = 1.0 + 3668 / 1000
    assert reading.switch_s(own, "t5_base", 3668) == pytest.approx(between)
    ours = (230 * 2.0 + between + 2 * 230 * 0.5) / 3600
    assert reading.hours(own, "t5_base", reading.PAC, "mrpc") == pytest.approx(ours)
    assert reading.hours(own, "t5_base", reading.PAC, "sst2") == pytest.approx(4210 * 2.0 / 3600)
    assert reading.speed_up(own, "t5_base", reading.COLLABORATIVE, "sst2") == pytest.approx(2.0)
    assert reading.speed_up(own, "t5_base", reading.ALONE, "sst2") == pytest.approx(4.0)
    half = [{**one, "result": {**one["result"], "time_scale": 0.5}} for one in own]
    assert reading.hours(half, "t5_base", reading.PAC, "mrpc") == pytest.approx(ours / 2)
    cut = [record(pac.replace(cell, layers=cell.layers // 2), made_up(cell)) for cell in pac.CELLS]
    assert reading.hours(cut, "t5_base", ("lora", "eddl"), "mrpc") == pytest.approx(2 * 3 * 230 * 4 / 3600)
    assert reading.hours(own[:0], "t5_base", ("lora", "eddl"), "mrpc") is None
    text = module("tables").page("hours", own)
    row = next(line for line in text.splitlines() if line.startswith("| LoRA | EDDL |"))
    assert row.split(" | ")[2:4] == ["0.31", "0.77"]
    assert "| +10 % | 1000 | -1..+3 % (2 attempts) |" in row
    assert "| Full | EDDL | OOM | OOM |" in text
    assert "board0 killed" in text and "a processor, 2 cores" in text


def test_what_is_to_be_reached(pac: Any, records: dict[str, list[dict[str, Any]]]) -> None:
    summary, reading = module("summary"), module("reading")
    bars = {bar.what: bar for bar in summary.every_bar(records)}

    def of(start: str) -> Any:
        return next(bar for what, bar in bars.items() if what.startswith(start))

    wire_s = 8 * 1.5 * 4e6 / 1e9 * 1514 / 1448
    assert reading.gradient_floor_s(records["hours"][0] | {"result": ran(1.0)}) == pytest.approx(wire_s, rel=1e-3)
    assert of("T5-Large: a cached step over").figure == pytest.approx(0.5 / 0.4)
    assert of("T5-Large: the same with packed").figure == pytest.approx(4.0) and not of("T5-Large: the same with").met
    assert of("T5-Large: a step of the first epoch with stock").figure > 4.0
    assert of("T5-Base: PAC over the best standalone row that fits, 1 epoch").figure == pytest.approx(4.0)
    assert of("T5-Base: PAC over the best collaborative LoRA or Adapters, 1 epoch").met
    assert of("int8: bytes").figure == pytest.approx(0.255) and of("int8: bytes").met
    assert of("int8_projected: bytes").figure == pytest.approx(0.034)
    assert of("int8: largest difference").figure == pytest.approx(0.2)
    assert of("T5-Large: GiB of cached").figure == pytest.approx(5.0)
    assert of("T5-Large, Full: weights").figure == pytest.approx((0.25 - 0.005) / 2.75)
    assert of("predicted steps").figure == pytest.approx(0.1)
    text = summary.index(records)
    assert "of 3 that it refused 3 were killed" in text
    assert "8.00 samples/s" in text
    assert summary.index({}).startswith("# PAC")


def test_report(pac: Any, records: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A page for every experiment, a picture for all but the plans'; what was not measured is left out."""
    every = [one for own in records.values() for one in own if one["run"]["parameters"]["model"] != "bart_large"]
    pac.write_report(pac.CELLS, every, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {f"{table}.png" for table in pac.TABLES if table != "grouping"}
    assert names == {f"{table}.md" for table in pac.TABLES} | drawn | {"README.md"}
    scores = (tmp_path / "accuracy.md").read_text()
    assert "| Parallel Adapters, cached | 91.00 | 91.00 | 91.00 | 91.00 |" in scores
    assert "Cached less uncached, in points: MRPC +0.00" in scores
    assert "MRPC 90.0 (loss 0.700)" in scores
    cache = (tmp_path / "ablation.md").read_text()
    assert "| int8 | 0.0 | 0.255 | 3.00 | 0.50 | 90.80 |" in cache
    assert "`int8` less uncached, in points: MRPC -0.20" in cache
    assert "| 2 | PAC | Parallel Adapters | 8.00 | 32.00 | 1000 |" in (tmp_path / "scaling.md").read_text()
    assert "| Full | " in (tmp_path / "memory.md").read_text()
    assert "embed enc 0-11 head on board0 (16 rows)" in (tmp_path / "grouping.md").read_text()
    other = tmp_path / "few"
    pac.write_report(pac.CELLS, every[:1], other)
    assert {path.name for path in other.iterdir()} == {"README.md", "hours.md", "hours.png"}


def test_real_tasks_have_cells_of_their_own(pac: Any, tmp_path: Path) -> None:
    words = ["--only", "accuracy", "--glue", str(tmp_path), "--model", str(tmp_path / "model")]
    cells = pac.chosen(pac._parse(words))
    assert {cell.glue for cell in cells} == {str(tmp_path)}
    assert {cell.kind for cell in cells} == {"score"}
    assert len(cells) == 4 * 3 * len(module("cells").SCORED)
    epochs = {cell.task: module("cells").chosen(cell.settings, "optimizer.epochs") for cell in cells}
    assert epochs == {"mrpc": "3", "stsb": "3", "sst2": "1", "qnli": "1"}
    with pytest.raises(SystemExit):
        pac._parse(["--glue", str(tmp_path)])


def test_updates_are_timed_one_by_one(pac: Any) -> None:
    """By phase, the first one apart."""
    log = [
        {"phase": phase, "train_s": str(seconds)}
        for phase, seconds in (("train", 5.0), ("train", 6.0), ("train", 8.0), ("cached", 8.5), ("cached", 8.6))
    ]
    found = module("measure").step_times(log)
    assert (found["train"]["updates"], found["train"]["first_s"]) == (3, 5.0)
    assert found["train"]["step_s"]["p50"] == pytest.approx(1.5)
    assert found["cached"]["step_s"]["p50"] == pytest.approx(0.1)


def test_rows_are_of_one_length(pac: Any, tmp_path: Path) -> None:
    """For a model that writes its labels as text, with the tokenizer that is made for it."""
    from edgempi.config.finetune import FinetuneDataConfig
    from edgempi.finetune.data.chosen import choose, template_for
    from edgempi.finetune.data.samples import tokenise
    from edgempi.models.source import read_spec, read_tokenizer

    rows, measure = module("rows"), module("measure")
    measure._write_model(tmp_path, "tiny_t5", 1)
    rows.write_even_rows(tmp_path / "rows.csv", 6)
    words = rows.even_words(tmp_path / "rows.csv")
    config: FinetuneDataConfig = compose(["task=finetune", *words]).finetune_data
    spec, chosen = read_spec(tmp_path), choose(config, tmp_path)
    assert spec.head.tied and spec.dec is not None and (spec.enc.layers, spec.dec.layers) == (1, 1)
    found = tokenise(chosen.train, template_for(config, chosen, spec), read_tokenizer(tmp_path))
    assert [len(sample.enc_ids) for sample in found.samples] == [128] * 6
    assert {len(sample.dec_ids) for sample in found.samples} == {rows.TARGET_LENGTH}
    assert not found.tally.sentences()


def test_spec_of_a_shape_is_that_of_its_checkpoint(pac: Any) -> None:
    """And the models are of the published sizes."""
    from edgempi.plan.training.technique import Technique, Tuning, trained_elements

    checkpoint, shapes = import_module("benchmarks.checkpoint"), import_module("benchmarks.shapes")
    millions = {}
    for name, shape in shapes.PAC.items():
        spec = checkpoint.spec_of(shape, shape.layers)
        millions[name] = round(trained_elements(spec, Tuning(Technique.full)) / 1e6)
    assert millions == {"t5_base": 223, "bart_large": 406, "t5_large": 738}


def test_pairs_of_a_backbone(pac: Any, tmp_path: Path) -> None:
    """All tasks' texts, in pairs, half of which belong together."""
    module("rows").write_matching_task(tmp_path / "pairs.csv", 80, 1)
    with open(tmp_path / "pairs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    assert all(row["first"].strip() and row["second"].strip() for row in rows)
    assert 20 < sum(row["label"] == "together" for row in rows) < 60


def test_a_head_is_taken_away(pac: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    trained, folder = tmp_path / "trained", tmp_path / "folder"
    trained.mkdir()
    folder.mkdir()
    save_file({"classifier.weight": torch.ones(2), "pooler.dense.weight": torch.ones(3)}, trained / "model.safetensors")
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {}, "model_type": "bert"}
    (trained / "config.json").write_text(json.dumps(config))
    (trained / "tokenizer.json").write_text("{}")
    module("backbone").take_head(trained, folder)
    assert list(load_file(folder / "model.safetensors")) == ["pooler.dense.weight"]
    assert json.loads((folder / "config.json").read_text()) == {"architectures": ["BertModel"], "model_type": "bert"}
    assert (folder / "tokenizer.json").exists()


def test_a_workshop_asks_the_planner_first(pac: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that fits nowhere is not run; one that does leaves its times, and no files."""
    measure = module("measure")
    said: list[tuple[str, ...]] = []
    entered: list[Any] = []

    class Lab:
        def __init__(self, attempts: int) -> None:
            pass

        def enter(self, words: Any) -> None:
            entered.append(words)

        def steadily(self, job: Any) -> dict[str, Any]:
            return {**job(), "speeds": SPEEDS}

        def close(self) -> None:
            pass

    def edgempi(*words: str) -> None:
        said.append(words)
        if words[0] == "profile":
            return
        run = Path(next(word for word in words if word.startswith("hydra.run.dir=")).partition("=")[2])
        run.mkdir(parents=True)
        rank = {"host": "board0", "peak_bytes": 1, "held": {}}
        result = {
            "phases": {}, "ranks": [rank], "final": {}, "predicted_s": {}, "continuation": "recompute", "trained": 1,
            "plan": {}, "assumed": None,
        }  # fmt: skip
        (run / "result.json").write_text(json.dumps(result))
        (run / "metrics.csv").write_text("step,phase,train_s\n1,train,5.0\n2,train,6.0\n")

    monkeypatch.setattr(measure, "Emulated", Lab)
    monkeypatch.setattr(measure, "edgempi", edgempi)
    monkeypatch.setattr(measure, "read_state", lambda: None)
    monkeypatch.setattr(measure, "isolated", lambda call, *about: call(*about))
    monkeypatch.setattr(measure, "lab_record", lambda: LAB)
    cells = [c for c in pac.CELLS if c.table == "hours" and c.kind == "steps" and c.model == "t5_base"]
    cell = pac.replace(cells[0], model="tiny_t5", layers=1, rows=20)
    with measure.workshop(tmp_path) as shop:
        found = shop.measure(cell)
        assert found["steps"]["train"]["step_s"]["p50"] == pytest.approx(1.0)
        assert found["misfit"] is None and found["killed"] == [] and found["speeds"] == SPEEDS
        assert [words[0] for words in said] == ["profile", "finetune"]
        assert "task.training=true" in said[0] and "system=standalone" in said[1]
        assert any(word.startswith("cluster.profile=") for word in said[1])
        assert not list((tmp_path / "run").iterdir())
        tight = ("cluster.devices.board0.memory_budget_bytes=1000000",)
        lab = tuple(word.replace("board0", f"board{n}") for n in range(4) for word in tight)
        misfit = shop.measure(pac.replace(cell, lab=lab))
        assert "missing" in misfit["misfit"] and misfit["missing_bytes"] > 0
        assert len(said) == 2 and len(entered) == 1


def test_the_planner_says_what_it_would_choose(pac: Any, tmp_path: Path) -> None:
    """As the command line would plan it, for a model of which there is only the shape."""
    spec = import_module("benchmarks.checkpoint").spec_of(import_module("benchmarks.shapes").SHAPES["tiny_t5"], 2)
    words = ["cluster=lab_pac", "system=pac", *module("rows").even_words(tmp_path / "rows.csv")]
    found = module("planning").planned(words, spec, 1000)
    assert found["misfit"] is None
    assert len(found["told"]["devices"]["train"]) == 4
    with pytest.raises(import_module("benchmarks.workshop").CellError, match="system=pac"):
        module("planning").planned([*words, "technique=lora"], spec, 1000)
