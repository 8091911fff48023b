"""The forward benchmark at a tiny size: what it measures, what it records, the table it prints."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiment; `benchmarks` is run from the repository's root and not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return import_module("benchmarks.forward")


def measured(forward: Any, folder: Path, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A tiny case and its result, in this process."""
    case = forward.Case("tiny", layers=1, dtype=dtype, length=5, threads=1, rounds=2)
    spec_data = forward._prepare(case, folder)
    result = forward.latency(case, folder)
    for side in ("ours", "theirs"):
        result[f"{side}_memory"] = forward.memory(side, case, folder, spec_data)
    return case, result


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-5), ("bf16", 5e-2)])
def test_both_sides_compute_the_same(forward: Any, tmp_path: Path, dtype: str, tolerance: float) -> None:
    """A ratio of times says something only where the results agree."""
    _, result = measured(forward, tmp_path, dtype)
    assert result["largest_difference"] <= tolerance
    assert 0 < result["ours_s"]["p20"] <= result["ours_s"]["p50"] <= result["ours_s"]["p80"]


def test_floor_is_the_linears_of_the_forward(forward: Any) -> None:
    """The recorder counts each linear once and replays just those."""
    import torch

    from edgempi.ops.linear import PLAIN

    recorder = forward.Recorder(PLAIN)
    x, weight = torch.ones(1, 5, 3), torch.ones(4, 3)
    recorder.record(lambda: recorder.route.kernel(x, weight, None, "relu"))
    recorder.route.kernel(x, weight, None, "none")
    assert recorder.flops == 2 * 5 * 3 * 4
    assert len(recorder._calls) == 1
    recorder.replay()


def test_record_and_table(forward: Any, tmp_path: Path) -> None:
    """A record holds run, result and meta; of equal runs the table shows the latest, under its host."""
    record, reduce = import_module("benchmarks.record"), import_module("benchmarks.reduce")
    folder, output = tmp_path / "model", tmp_path / "records"
    folder.mkdir()
    case, result = measured(forward, folder, "fp32")
    for _ in range(2):
        record.write_record(output, "forward", asdict(case), result)
    records = record.read_records(output)
    assert [set(one) for one in records] == [{"run", "result", "meta"}] * 2
    assert records[0]["run"]["parameters"]["length"] == 5
    assert records[0]["meta"]["packages"]["torch"]
    table = reduce.tables(records)
    assert table.count("tiny (1 of 2 layers)") == 1
    assert f"{records[0]['meta']['cores']} cores" in table


def test_depth_is_cut_to_what_fits(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies in the memory at hand; at least one layer; never more than the model has."""
    memory = forward.psutil.virtual_memory()
    for available, depth in ((10**15, 6), (600 * 10**6, 5), (0, 1)):
        monkeypatch.setattr(forward.psutil, "virtual_memory", lambda given=available: memory._replace(available=given))
        assert forward._depth("distilbert", "fp32", None) == depth
    monkeypatch.undo()
    assert forward._depth("distilbert", "bf16", 2) == 2
