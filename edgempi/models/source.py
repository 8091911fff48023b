"""Where a model comes from: a local folder, a hub id, or the small one that edgempi ships.

Configurations and tokenizers are read by transformers, never with `trust_remote_code`; only the parent and rank 0 do
that (the others `locate` the folder), and what they find travels on as data.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgempi.errors import UserError
from edgempi.models.checkpoint import Checkpoint
from edgempi.models.families import family_named
from edgempi.ops.activation import activation_named
from edgempi.plan.spec import ModelSpec

SHIPPED = "assistant"
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""A tokenizer has one of these."""
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is fetched from the hub: no code, no pickles."""


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a model; a hub id is fetched (each host into its own cache).

    Raises:
        UserError: neither a folder nor a hub id that can be reached.
    """
    if path == SHIPPED:
        return Path(str(files("edgempi.assets"))) / "household" / "model"
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    looks_like_id = path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    if not looks_like_id:
        raise UserError(
            "model.path", value=path, rule="it is a folder on every host, a hub id, or 'assistant'",
            remedy="Correct the path, or copy the folder to the same place on each host",
        )  # fmt: skip
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            "model.path", value=path, rule="no such folder here, and the hub did not give a model of that id",
            remedy="Check the spelling and the network, or point model.path to a local folder",
        ) from error  # fmt: skip


def read_spec(folder: Path) -> ModelSpec:
    """The ModelSpec of a checkpoint folder.

    Raises:
        UserError: the configuration is missing, damaged, or of a family that edgempi does not run.
    """
    config = read_config(folder)
    family = family_named(config.model_type)
    with Checkpoint(folder) as checkpoint:
        try:
            spec = family.spec(config, checkpoint.entries.keys())
        except (AttributeError, TypeError, KeyError, ZeroDivisionError) as error:
            raise _bad_config(folder, f"{type(error).__name__}: {error}") from error
    for name in (spec.head.dense_activation, *(stack.activation for stack in spec.stacks.values())):
        activation_named(name)
    return replace(spec, stop_tokens=_stop_tokens(folder) or spec.stop_tokens)


def read_config(folder: Path) -> Any:
    """The transformers configuration of a folder."""
    from transformers import AutoConfig

    if not folder.is_dir() or not (folder / "config.json").exists():
        raise UserError(
            f"model folder {folder}", value="no config.json", rule="it is a Hugging Face folder",
            remedy="Point model.path to a folder with config.json and safetensors",
        )  # fmt: skip
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged or unknown configuration
        raise _bad_config(folder, str(error).strip().splitlines()[0]) from error


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer

    try:
        # transformers makes up an empty vocabulary for some families where there is none.
        if not any((folder / name).exists() for name in VOCABULARIES):
            raise FileNotFoundError(f"none of {', '.join(VOCABULARIES)}")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"tokenizer in {folder}", value=str(error).strip().splitlines()[0],
            rule="the folder holds a tokenizer beside the weights",
            remedy="Copy tokenizer.json and tokenizer_config.json into it",
        ) from error  # fmt: skip


def _stop_tokens(folder: Path) -> tuple[int, ...]:
    """What ends a text by `generation_config.json`, which instruct models keep apart; empty where it says nothing."""
    try:
        found = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return ()
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int))


def _bad_config(folder: Path, value: str) -> UserError:
    return UserError(
        f"configuration {folder / 'config.json'}", value=value, rule="it describes a model that edgempi runs",
        remedy="Use a checkpoint of one of the families in the README",
    )  # fmt: skip
