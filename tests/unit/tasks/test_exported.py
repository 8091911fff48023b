"""What a run of `edgempi finetune` leaves, in the hands of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgempi.comm import lone_world
from edgempi.config.schema import Config
from edgempi.finetune.checkpoint import load_trained
from edgempi.tasks.finetune import prepare
from edgempi.tasks.finetune_run import train_together
from models.worded import build_worded
from models.zoo import PAD
from mpi.finetune import job

TEXTS = ["the car near the river\na boat", "the car"]


def _trained(config: Config) -> tuple[dict[str, Any], Path]:
    """A run's payload, and the folder of what it trained."""
    payload = prepare(config)
    return payload, Path(train_together(config, payload, lone_world())["exported"])


def test_a_classifier_of_a_decoder_runs_in_batches(tmp_path: Path) -> None:
    import transformers

    model = tmp_path / "model"
    build_worded("llama", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    payload, folder = _trained(job(model, tmp_path / "run", "standalone", 1, technique="full", epochs=1))
    assert payload["data"]["pad"] == payload["spec"]["pad_token"] == PAD

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.pad_token_id == tokenizer.pad_token_id

    def logits(*texts: str) -> torch.Tensor:
        given = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            return torch.as_tensor(theirs(**given).logits)

    assert logits(*TEXTS).shape == (2, 2)
    torch.testing.assert_close(logits(*TEXTS), torch.cat([logits(text) for text in TEXTS]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_t5_that_is_trained_in_full_is_what_it_became(tmp_path: Path, repeats: bool) -> None:
    import transformers

    built, model = tmp_path / "built", tmp_path / "model"
    build_worded("t5", built)
    shutil.copytree(built, model)
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    if repeats:
        tensors = load_file(model / "model.safetensors")
        more = {name: tensors["shared.weight"].clone() for name in tables}
        save_file({**tensors, **more}, model / "model.safetensors", metadata={"format": "pt"})
    _, folder = _trained(job(model, tmp_path / "run", "standalone", 1, technique="full", epochs=1))
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    table = load_trained(newest, ["enc.embed.tokens.weight"])["enc.embed.tokens.weight"]
    assert not torch.equal(table, load_file(built / "model.safetensors")["shared.weight"])
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
        assert torch.equal(theirs.get_submodule(name).weight, table), name
    assert set(load_file(folder / "model.safetensors")) & set(tables) == (set(tables) if repeats else set())
