"""LoRA as peft reads it, and whole models: the same logits, the same factors, refusal of what is adapted otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.export import Base, read_lora, write_lora, write_model
from edgempi.models.families import family_named
from edgempi.models.source import read_spec
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning, trained_shapes
from models.zoo import FAMILIES, PAD, Model, build, inputs
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
    pads = "" if spec.enc else f", pad_token_id={PAD}"  # by which the last token is found
    assert f"{cls}.from_pretrained({str(source)!r}, num_labels=3{pads})" in (target / "README.md").read_text()
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


def test_a_full_disk_leaves_the_export_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(MODELS["bert"], tmp_path / "model")
    spec = read_spec(tmp_path / "model")
    base, state = Base.of(tmp_path / "model", spec, "m"), _state(spec, LORA)
    write_lora(tmp_path / "adapter", base, spec, LORA, state)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"torn")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("edgempi.finetune.export.peft.save_file", full)
    with pytest.raises(UserError, match=r"export folder .*No space left on device .*Free some space"):
        write_lora(tmp_path / "adapter", base, spec, LORA, {name: value + 1 for name, value in state.items()})
    _, read = read_lora(tmp_path / "adapter", spec)
    assert all(torch.equal(read[name], state[name]) for name in read)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "model"}


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


REPEATED = {
    "t5": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "t5-base": ("decoder.embed_tokens.weight",),
    "bart": ("model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"),
    "bert": ("cls.predictions.decoder.bias",),
    "roberta": ("lm_head.decoder.bias",),
}
"""Second names of one parameter, as files of older versions have them."""
ORIGINALS = {
    "embed_tokens.weight": ("shared.weight", "model.shared.weight"),
    "decoder.bias": ("cls.predictions.bias", "lm_head.bias"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_tensors_that_a_file_repeats_stay_one(name: str, tmp_path: Path) -> None:
    import transformers

    source, target = tmp_path / "model", tmp_path / "tuned"
    made(name, source)
    tensors = load_file(source / "model.safetensors")
    (first,) = {
        known for end, names in ORIGINALS.items() if REPEATED[name][0].endswith(end)
        for known in names if known in tensors
    }  # fmt: skip
    more = {copy: tensors[first].clone() for copy in REPEATED[name]}
    save_file({**tensors, **more}, source / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(source)
    ours = trunk(source, spec, "full", dtype=torch.float32, seed=4)
    state = ours.trained.state()
    write_model(target, source, Base.of(source, spec, "m"), ours.spec, ours.tuning, state)
    written = load_file(target / "model.safetensors")
    assert not torch.equal(written[first], tensors[first])
    assert all(torch.equal(written[copy], written[first]) for copy in REPEATED[name])
    theirs = getattr(transformers, MODELS[name].cls).from_pretrained(target).eval()
    if spec.head.rows:
        given = rows(spec)
        assert theirs_loss(theirs, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=1e-5)
    held = theirs.state_dict()
    assert all(torch.equal(held[stored], written[first]) for stored in (first, *REPEATED[name]))


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    """A file of T5 with a head that differs from the token table: both are trained, and written apart."""
    import transformers

    source, target = tmp_path / "model", tmp_path / "tuned"
    made("t5", source)
    tensors = load_file(source / "model.safetensors")
    more = {"lm_head.weight": 0.5 * tensors["shared.weight"] + 0.01}
    save_file({**tensors, **more}, source / "model.safetensors", metadata={"format": "pt"})
    spec = read_spec(source)
    ours = trunk(source, spec, "full", dtype=torch.float32, seed=4)
    write_model(target, source, Base.of(source, spec, "m"), ours.spec, ours.tuning, ours.trained.state())
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(target).eval()
    given = rows(spec)
    assert theirs_loss(theirs, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_a_decoder_with_labels_says_what_it_is_padded_with(name: str, tmp_path: Path) -> None:
    import transformers

    source, target = tmp_path / "model", tmp_path / "tuned"
    made(name, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    spec = read_spec(source)
    assert spec.pad_token is None
    ours = trunk(source, replace(spec, pad_token=PAD), "full", dtype=torch.float32, labels=3, seed=4)
    base = Base.of(source, spec, "m")
    write_model(target, source, base, ours.spec, ours.tuning, ours.trained.state())
    assert json.loads((target / "config.json").read_text())["pad_token_id"] == PAD
    theirs = getattr(transformers, base.class_with(ours.spec)).from_pretrained(target).eval()
    given = rows(spec, labels="classes")
    assert theirs_loss(theirs, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=1e-5)
    again = read_spec(target)
    assert (again.pad_token, again.head.select, again.head.rows) == (PAD, "last", 3)


def test_adapters_that_are_malformed_or_of_others_are_named(tmp_path: Path) -> None:
    for name in ("bert", "gpt2"):
        source, folder = tmp_path / name / "model", tmp_path / name / "adapter"
        build(MODELS[name], source)
        spec = read_spec(source)
        write_lora(folder, Base.of(source, spec, "m"), spec, LORA, _state(spec, LORA))
        config = json.loads((folder / "adapter_config.json").read_text())
        for change, said in (
            ({"r": None}, "r None, lora_alpha .*has both, as numbers"),
            ({"r": "6"}, "r 6, lora_alpha"),
            ({"r": 0}, "r 0, lora_alpha"),
            ({"lora_alpha": None}, "lora_alpha None"),
            ({"r": 2 * config["r"]}, "lora_A: .* beside this model it has shape"),
            ({"peft_type": None}, "peft_type None; edgempi runs LoRA"),
        ):
            (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(UserError, match=said):
                read_lora(folder, spec)
        for key in ("r", "lora_alpha", "peft_type"):
            rest = {name: value for name, value in config.items() if name != key}
            (folder / "adapter_config.json").write_text(json.dumps(rest))
            with pytest.raises(UserError, match=f"adapter {folder}"):
                read_lora(folder, spec)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        weights = folder / "adapter_model.safetensors"
        tensors = load_file(weights)
        flat = {name: tensor.flatten() for name, tensor in tensors.items()}
        for wrong in (flat, {name: tensor.int() for name, tensor in tensors.items()}):
            save_file(wrong, weights)
            with pytest.raises(UserError, match="beside this model it has shape"):
                read_lora(folder, spec)
        for bad in (b"", b"PK\x03\x04 a pickle", (1 << 40).to_bytes(8, "little") + b"{}"):
            weights.write_bytes(bad)
            with pytest.raises(UserError, match="whole safetensors; pickles are not read"):
                read_lora(folder, spec)
        weights.unlink()
        with pytest.raises(UserError, match=r"adapter_model.safetensors: .*; whole safetensors"):
            read_lora(folder, spec)


def test_what_peft_itself_writes_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, spec = made("bert", tmp_path / "model")
    given = rows(spec)
    before = theirs_loss(model, spec, given).item()
    settings = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["query", "value"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    tuning, state = read_lora(tmp_path / "adapter", spec)
    ours = trunk(tmp_path / "model", spec, "lora", dtype=torch.float32, tuning=tuning)
    ours.trained.load(state)
    found = loss(ours, given).total.item()
    assert found == pytest.approx(theirs_loss(wrapped, spec, given).item(), rel=1e-5) != before
    keys = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["key", "value"])
    peft.get_peft_model(made("bert", tmp_path / "again")[0], keys).save_pretrained(tmp_path / "others")
    with pytest.raises(UserError, match=r"nothing beside .*query"):
        read_lora(tmp_path / "others", spec)


def test_a_side_network_is_no_part_of_a_model(tmp_path: Path) -> None:
    _, spec = made("bert", tmp_path / "model")
    base = Base.of(tmp_path / "model", spec, "m")
    with pytest.raises(UserError, match="beside its base"):
        write_model(tmp_path / "a", tmp_path / "model", base, spec, Tuning(Technique.adapter), {})
