"""LoRA as peft reads it, and whole models: the same logits, the same factors, refusal of what is adapted otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.export import Base, read_lora, write_lora, write_model
from edgempi.models.families import family_named
from edgempi.models.source import read_spec
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning, trained_shapes
from models.zoo import FAMILIES, Model, build, inputs
from unit.finetune.tuned import MODELS, loss, made, rows, theirs_loss, trunk

LORA = Tuning(Technique.lora, rank=3, alpha=7.0)


def _state(spec: ModelSpec, tuning: Tuning) -> dict[str, Tensor]:
    """Every trained parameter drawn, so that none is the zero it starts from."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: shape for unit in spec.units for name, shape in trained_shapes(spec, unit, tuning).items()}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _merged(folder: Path, spec: ModelSpec, state: dict[str, Tensor], tuning: Tuning, target: Path) -> None:
    """A checkpoint with LoRA's products added to q and v, and the label head put in, by the families' tables."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    source = family_named(spec.family).source
    for name in state:
        if name.endswith(".lora.a"):
            stem = name.removesuffix(".lora.a")
            at = source(f"{stem}.weight")
            weight = tensors[next(name for name in at.names if name in tensors)]
            rows = weight.t() if at.transposed else weight
            part = rows.chunk(at.part[1])[at.part[0]]
            part += tuning.alpha / tuning.rank * state[f"{stem}.lora.b"] @ state[name]
        elif name.startswith("head."):
            tensors[next(n for n in source(name).names if n in tensors)].copy_(state[name])
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())


def _logits(model: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**given)
    return found.logits if "logits" in found else found.last_hidden_state


def _loaded(model: Model, folder: Path) -> Any:
    import transformers

    return getattr(transformers, model.cls).from_pretrained(folder).eval()


LABELLED = ["bert-classifier", "roberta-classifier", "distilbert-classifier", "gpt2-classifier", "bert-tags"]
BARE = ["bert-base", "gpt2-base", "t5-base", "t5-encoder"]
GATED = ["opt-350m", "llama-one-head", "bart-uneven"]


@pytest.mark.parametrize("name", [*(model.name for model in FAMILIES), *LABELLED, *BARE, *GATED])
def test_peft_loads_what_lora_learnt(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, source, target = MODELS[name], tmp_path / "model", tmp_path / "adapter"
    build(model, source)
    spec = read_spec(source)
    state = _state(spec, LORA)
    write_lora(target, Base.of(source, spec, str(source)), spec, LORA, state)

    tuned = peft.PeftModel.from_pretrained(_loaded(model, source), target).eval()
    given = inputs(model, 3, 7, padded=True)
    _merged(source, spec, state, LORA, tmp_path / "merged")
    wanted = _logits(_loaded(model, tmp_path / "merged"), given)
    beside = _logits(tuned, given)
    torch.testing.assert_close(beside, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_logits(tuned.merge_and_unload(), given), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - _logits(_loaded(model, source), given)).abs().max() > 1e-2  # and it did something


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_peft_loads_a_new_head_of_labels(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    source, target = tmp_path / "model", tmp_path / "adapter"
    _, spec = made(name, source)
    ours = trunk(source, spec, "lora", dtype=torch.float32, labels=3, seed=4)
    base = Base.of(source, spec, str(source))
    write_lora(target, base, ours.spec, ours.tuning, ours.trained.state())

    cls = base.class_with(ours.spec)
    assert f"{cls}.from_pretrained({str(source)!r}, num_labels=3)" in (target / "README.md").read_text()
    model = getattr(transformers, cls).from_pretrained(source, num_labels=3)
    tuned = peft.PeftModel.from_pretrained(model, target).eval()
    given = rows(spec, labels="classes")
    assert theirs_loss(tuned, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt2-base", "t5", "bart", "qwen3"])
def test_lora_round_trip(name: str, tmp_path: Path) -> None:
    build(MODELS[name], tmp_path / "model")
    spec = read_spec(tmp_path / "model")
    state = _state(spec, LORA)
    base = Base.of(tmp_path / "model", spec, "someone/model", "v1")
    for notes in ("", "Accuracy 91.0 on 408 rows."):  # the second time an earlier export is replaced
        write_lora(tmp_path / "adapter", base, spec, LORA, state, notes)
    tuning, read = read_lora(tmp_path / "adapter", spec)
    assert tuning == LORA and set(read) == {name for name in state if ".lora." in name}
    assert all(torch.equal(read[name], state[name]) for name in read)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert card.startswith("# adapter\n") and base.fingerprint in card and "91.0" in card
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "model"}


def test_lora_in_another_way_is_refused(tmp_path: Path) -> None:
    build(MODELS["gpt2"], tmp_path / "model")
    spec = read_spec(tmp_path / "model")
    folder = tmp_path / "adapter"
    write_lora(folder, Base.of(tmp_path / "model", spec, "m"), spec, LORA, _state(spec, LORA))
    config = json.loads((folder / "adapter_config.json").read_text())
    for odd in ({"use_dora": True}, {"alpha_pattern": {"c_attn": 2}}, {"peft_type": "IA3"}, {"r": 3}):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **odd}))
        with pytest.raises(UserError, match="beside q and v"):
            read_lora(folder, spec)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    mixed = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(mixed, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="for Q, K and V together"):
        read_lora(folder, spec)
    save_file(dict(list(tensors.items())[2:]), folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="nothing beside"):
        read_lora(folder, spec)
    save_file({**tensors, "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight": torch.ones(1)},
              folder / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="7 tensors"):
        read_lora(folder, spec)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="says what it is"):
        read_lora(folder, spec)


def test_an_export_replaces_nothing_else(tmp_path: Path) -> None:
    build(MODELS["bert"], tmp_path / "model")
    spec = read_spec(tmp_path / "model")
    with pytest.raises(UserError, match="something else"):
        write_lora(tmp_path / "model", Base.of(tmp_path / "model", spec, "m"), spec, LORA, _state(spec, LORA))
    assert (tmp_path / "model" / "model.safetensors").exists()


WHOLE = [(name, technique, None) for name in ("bert", "gpt2", "t5", "bart", "opt") for technique in ("full", "lora")]
NEW_HEADS = [(name, "full", 3) for name in ("bert", "roberta", "distilbert", "gpt2", "bert-base", "gpt2-base")]


@pytest.mark.parametrize(("name", "technique", "labels"), [*WHOLE, *NEW_HEADS])
def test_a_whole_model(name: str, technique: str, labels: int | None, tmp_path: Path) -> None:
    import transformers

    _, spec = made(name, tmp_path / "model")
    ours = trunk(tmp_path / "model", spec, technique, dtype=torch.float32, labels=labels, seed=4)
    base = Base.of(tmp_path / "model", spec, "m")
    for _ in range(2):
        state = ours.trained.state()
        write_model(tmp_path / "tuned", tmp_path / "model", base, ours.spec, ours.tuning, state, "Nothing.")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "tuned")
    model, about = getattr(transformers, config.architectures[0]).from_pretrained(
        tmp_path / "tuned", output_loading_info=True
    )
    assert not about["missing_keys"]
    given = rows(spec, labels="tokens" if labels is None else "classes")
    assert theirs_loss(model.eval(), spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=1e-5)
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert card.startswith("# tuned\n\nThis folder holds a model with ")


def test_a_side_network_is_no_part_of_a_model(tmp_path: Path) -> None:
    _, spec = made("bert", tmp_path / "model")
    base = Base.of(tmp_path / "model", spec, "m")
    with pytest.raises(UserError, match="beside its base"):
        write_model(tmp_path / "a", tmp_path / "model", base, spec, Tuning(Technique.adapter), {})
