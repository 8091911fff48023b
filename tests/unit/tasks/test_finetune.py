"""What `edgempi finetune` refuses before any rank starts, and what it says of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgempi.comm import World
from edgempi.config.cluster import DeviceConfig
from edgempi.config.finetune import CacheConfig, FinetuneDataConfig, SourceName, SystemName, TechniqueName
from edgempi.config.frozen import freeze, thaw
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.finetune.data.handout import shared_samples, write_samples
from edgempi.finetune.data.samples import Sample
from edgempi.tasks.finetune import prepare
from models.worded import build_worded
from mpi.finetune import job
from unit.comm.threads import on_ranks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with tokenizers."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("bert", "llama", "t5")}
    for name, folder in found.items():
        build_worded(name, folder)
    return found


@pytest.fixture
def config(folders: dict[str, Path], tmp_path: Path) -> Config:
    """A sound job."""
    return job(folders["bert"], tmp_path / "run", "pac", 2)


def _rows(config: Config, **more: Any) -> Config:
    return replace(config, finetune_data=FinetuneDataConfig(**{"max_tokens": 64, **more}))


def test_a_payload_can_be_frozen_and_says_what_is_trained(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    payload = prepare(config)
    assert thaw(freeze(config, payload)) == (config, json.loads(json.dumps(payload)))
    assert payload["data"]["rows"] == {"train.npz": 12, "evaluation.npz": 3}
    assert payload["assumed"].startswith("Times are assumed, not measured: 10 GFLOP/s times the devices' speeds (3, 1)")
    how = "run edgempi profile task.training=true cluster.profile=profile.yaml with this run's other overrides; then"
    assert how in payload["assumed"]
    assert how in capsys.readouterr().err
    shared = prepare(replace(config, system=replace(config.system, name=SystemName.eddl)))
    rows = [row["rows"] for row in shared["plan"]["devices"]["train"]]
    assert rows == [4, 1]


def test_rows_that_are_cut_and_left_out_are_told(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "the village is near,yes\n" + "a,no\n" * 3 + ",no\n", encoding="utf-8")
    table = {"source": SourceName.table, "path": str(path), "texts": ["text"], "label": "label", "max_tokens": 4}
    payload = prepare(_rows(config, **table))
    assert payload["data"]["told"] == [
        "rows.csv, 1 row: text is empty (line 6)",
        "rows.csv, 2 rows: repeats an earlier row (kept) (line 4, 5)",
        "rows.csv, 1 row: cut to 4 tokens (line 2)",
    ]
    assert list(payload["data"]["rows"]) == ["train.npz"]


def test_the_technique_and_the_cache_fit_the_system(config: Config) -> None:
    with pytest.raises(UserError, match=r"system=pac: technique=lora"):
        prepare(replace(config, technique=replace(config.technique, name=TechniqueName.lora)))
    with pytest.raises(UserError, match=r"cache.factor: 4; activations are projected before caching where"):
        prepare(replace(config, cache=CacheConfig(factor=4)))
    with pytest.raises(UserError, match=r"speed of device1: 0"):
        devices = {"device0": DeviceConfig(), "device1": DeviceConfig(speed=0.0)}
        prepare(replace(config, cluster=replace(config.cluster, devices=devices)))
    with pytest.raises(UserError, match=r"side network reduction: 7"):
        prepare(replace(config, technique=replace(config.technique, reduction=7)))


def test_rows_that_the_model_has_no_use_for(config: Config, folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "the village", "completion": "is near"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"an encoder learns labels"):
        prepare(_rows(config, source=SourceName.jsonl, path=str(path)))
    with pytest.raises(UserError, match=r"finetune_data.text_to_text: true; labels are written as text by an encoder-"):
        prepare(_rows(config, text_to_text=True))
    with pytest.raises(UserError, match=r"finetune_data.task: null"):
        prepare(_rows(config, task=None))
    with pytest.raises(UserError, match=r"finetune_data.texts: none"):
        prepare(_rows(config, source=SourceName.table, path=str(path)))
    with pytest.raises(UserError, match=r"longest row's length: 101 tokens; the model has positions for 96"):
        long = tmp_path / "long.jsonl"
        long.write_text(json.dumps({"text": "the " * 200}) + "\n", encoding="utf-8")
        llama = replace(config, model=replace(config.model, path=str(folders["llama"])))
        prepare(_rows(llama, source=SourceName.jsonl, path=str(long), max_tokens=101))


def test_a_folder_with_checkpoints_is_not_overwritten(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"it holds the checkpoints of another run"):
        prepare(config)
    with pytest.raises(UserError, match=r"task.resume: true, without task.folder"):
        prepare(replace(config, task=replace(config.task, folder=None, resume=True)))


def test_samples_reach_every_rank(tmp_path: Path) -> None:
    ids = [np.arange(n + 1, dtype=np.int32) for n in range(5)]
    samples = [Sample(f"{n:032x}", np.asarray(n, np.int32), enc_ids=ids[n]) for n in range(5)]
    write_samples(tmp_path / "samples.npz", samples)

    def run(world: World) -> bool:
        torch.set_num_threads(1)
        found = shared_samples(world, tmp_path / "samples.npz")
        for one, other in zip(found, samples, strict=True):
            assert np.array_equal(one.enc_ids, other.enc_ids)  # type: ignore[arg-type]
            assert (one.key, one.labels) == (other.key, other.labels)
        return len(found) == 5

    assert on_ranks(3, run) == [True] * 3
