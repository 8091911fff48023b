"""Where models come from: folders, what they lack, and what ends a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.models.source import locate, read_spec, read_tokenizer
from models.zoo import FAMILIES, build

LLAMA = next(model for model in FAMILIES if model.name == "llama")


def test_the_shipped_model_is_found() -> None:
    assert (locate("assistant") / "model.safetensors").exists()


def test_a_path_that_is_no_folder() -> None:
    with pytest.raises(UserError, match=r"model\.path: /nowhere/at/all"):
        locate("/nowhere/at/all")


@pytest.mark.parametrize(("said", "stops"), [([7, 9], (7, 9)), (5, (5,)), (None, (2,))])
def test_what_ends_a_text(said: object, stops: tuple[int, ...], tmp_path: Path) -> None:
    build(LLAMA, tmp_path)  # its configuration says 2
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert read_spec(tmp_path).stop_tokens == stops


def test_a_made_up_tokenizer_is_refused(tmp_path: Path) -> None:
    build(next(model for model in FAMILIES if model.name == "bert"), tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)
