"""Adapters and side networks in a model of transformers: as in training, and in no other model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.export import Base, attach, read_own, write_adapter
from edgempi.finetune.trunk import Trunk
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.technique import Technique, Tuning
from models.zoo import redraw
from unit.finetune.tuned import KINDS, MODELS, NAMES, loss, made, rows, theirs_loss, trunk

CLOSE = 1e-5
"""Norms and angles of transformers are fp32 whatever the model is in."""


def _written(name: str, technique: str, root: Path, **more: Any) -> tuple[Trunk, ModelSpec]:
    """A tuned model, its base in `model` and its export in `adapter`."""
    _, spec = made(name, root / "model")
    ours = trunk(root / "model", spec, technique, seed=3, **more)
    base = Base.of(root / "model", spec, str(root / "model"))
    write_adapter(root / "adapter", base, ours.spec, ours.tuning, ours.trained.state())
    return ours, spec


def _loaded(cls: str, folder: Path, **more: Any) -> Any:
    import transformers

    return getattr(transformers, cls).from_pretrained(folder, **more).double().eval()


def _side(name: str, root: Path) -> Any:
    """A model with its side network."""
    _written(name, "parallel_adapter", root)
    theirs = _loaded(MODELS[name].cls, root / "model")
    attach(theirs, root / "adapter")
    return theirs


CASES = [*((name, "parallel_adapter") for name in NAMES), *((name, "adapter") for name in (*KINDS, "gpt2", "bart"))]


@pytest.mark.parametrize(("name", "technique"), CASES)
def test_it_answers_as_in_training(name: str, technique: str, tmp_path: Path) -> None:
    ours, spec = _written(name, technique, tmp_path)
    given = rows(spec)
    theirs = _loaded(MODELS[name].cls, tmp_path / "model")
    before = theirs_loss(theirs, spec, given).item()
    attached = attach(theirs, tmp_path / "adapter")
    found = theirs_loss(theirs, spec, given).item()
    assert found == pytest.approx(loss(ours, given).total.item(), rel=CLOSE)
    assert abs(found - before) > 10 * CLOSE * abs(before)
    with pytest.raises(UserError, match="one at a time"):
        attach(theirs, tmp_path / "adapter")
    attached.remove()
    assert theirs_loss(theirs, spec, given).item() == before


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(Technique.parallel_adapter, reduction=2, merge=False),
        Tuning(Technique.parallel_adapter, reduction=2, down_rank=3),
        Tuning(Technique.parallel_adapter, reduction=2, down_rank=0),
    ],
    ids=["alone", "low-rank", "fixed"],
)
def test_other_side_networks(tuning: Tuning, tmp_path: Path) -> None:
    ours, spec = _written("t5", "parallel_adapter", tmp_path, tuning=tuning)
    theirs = _loaded(MODELS["t5"].cls, tmp_path / "model")
    attach(theirs, tmp_path / "adapter")
    given = rows(spec)
    assert theirs_loss(theirs, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=CLOSE)


@pytest.mark.parametrize("technique", ["parallel_adapter", "adapter"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2"])
def test_a_new_head_of_labels_comes_along(name: str, technique: str, tmp_path: Path) -> None:
    ours, spec = _written(name, technique, tmp_path, labels=3)
    cls = read_own(tmp_path / "adapter").base.class_with(ours.spec)
    theirs = _loaded(cls, tmp_path / "model", num_labels=3)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    attached = attach(theirs, tmp_path / "adapter")
    given = rows(spec, labels="classes")
    assert theirs_loss(theirs, spec, given).item() == pytest.approx(loss(ours, given).total.item(), rel=CLOSE)
    attached.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
    with pytest.raises(UserError, match="num_labels=3"):
        attach(_loaded(cls, tmp_path / "model", num_labels=2), tmp_path / "adapter")
    with pytest.raises(UserError, match="Load the class"):
        attach(_loaded(MODELS[name].cls, tmp_path / "model"), tmp_path / "adapter")


def _greedy(model: Any, ids: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


def test_a_decoder_generates(tmp_path: Path) -> None:
    theirs = _side("llama", tmp_path)
    ids = torch.tensor([[5, 9, 17, 30]])
    found = theirs.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert found.shape[1] > 4
    assert torch.equal(found, _greedy(theirs, ids, found.shape[1] - 4))
    # A pass that sees the last token alone would be answered from too little.
    past = theirs(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(UserError, match="use_cache=False"):
        theirs(input_ids=ids[:, -1:], past_key_values=past, use_cache=True)
    with pytest.raises(UserError, match="one entry per token"):
        theirs(input_ids=ids, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))


def test_an_encoder_decoder_generates(tmp_path: Path) -> None:
    theirs = _side("t5", tmp_path)
    ids = torch.tensor([[5, 9, 17, 30], [8, 6, 4, 3]])
    given = {"input_ids": ids, "attention_mask": (ids != 3).long()}
    start = torch.full((2, 1), 3)
    found = theirs.generate(**given, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    with torch.no_grad():
        first = theirs(**given, decoder_input_ids=start, use_cache=False).logits[:, -1]
    assert torch.equal(found[:, 1], first.index_fill(1, torch.tensor([theirs.config.eos_token_id]), -1e9).argmax(-1))
    beams = theirs.generate(**given, max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=2)
    assert len(beams) == 2
    encoded = theirs.get_encoder()(**given)
    # Each row several times, as a search over beams asks for them.
    encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(2, dim=0)
    mask = given["attention_mask"].repeat_interleave(2, dim=0)
    with torch.no_grad():
        more = theirs(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=start.repeat(2, 1)).logits[:, -1]
    torch.testing.assert_close(more, first.repeat_interleave(2, dim=0))
    encoded.last_hidden_state = encoded.last_hidden_state + 1
    with pytest.raises(UserError, match="encoder outputs of another pass"):
        theirs(encoder_outputs=encoded, decoder_input_ids=start.repeat(2, 1))


def test_it_fits_its_own_base_alone(tmp_path: Path) -> None:
    _written("bert", "parallel_adapter", tmp_path)
    cls = MODELS["bert"].cls
    other = _loaded(cls, tmp_path / "model")
    redraw(other, seed=9)
    other.float().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="made for"):
        attach(_loaded(cls, tmp_path / "other"), tmp_path / "adapter")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    os.replace(tmp_path / "model" / "model.safetensors", tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    with pytest.raises(UserError, match="made for"):  # the weights, but not the form
        attach(_loaded(cls, tmp_path / "other"), tmp_path / "adapter")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    moved = _loaded(cls, tmp_path / "other")
    with pytest.raises(UserError, match="training mode"):
        attach(moved.train(), tmp_path / "adapter")
    attach(moved.eval(), tmp_path / "adapter")  # the place does not matter


def test_what_is_damaged_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    ours, _ = _written("bert", "adapter", tmp_path)
    folder, theirs = tmp_path / "adapter", _loaded(MODELS["bert"].cls, tmp_path / "model")
    read = read_own(folder)
    assert read.tuning == ours.tuning and read.head is None and read.base.architecture == MODELS["bert"].cls
    assert all(torch.equal(read.state[name], value) for name, value in ours.trained.state().items())

    config = json.loads((folder / "adapter_config.json").read_text())
    for change, why in (
        ({"peft_type": "LORA"}, "Load it with peft"),
        ({"format": 99}, "format 99"),
        ({"base": {}}, "TypeError"),
        ({"base": None}, "TypeError"),
        ({"base": {**config["base"], "name": 3}}, "name is 3"),
        ({"tuning": {**config["tuning"], "bottleneck_reduction": 8}}, "has shape"),
        ({"tuning": {**config["tuning"], "bottleneck_reduction": 0}}, "a size below one"),
        ({"tuning": {**config["tuning"], "bottleneck_reduction": "8"}}, "bottleneck_reduction is '8'"),
        ({"tuning": {**config["tuning"], "technique": "prefix"}}, "ValueError: 'prefix'"),
        ({"tuning": {**config["tuning"], "technique": "full"}}, "has shape"),
        ({"head": {"rows": "two"}}, "rows is 'two'"),
        ({"head": {"columns": 2}}, "TypeError"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=why):
            attach(theirs, folder)
    for text in ("[1, 2]", "{", ""):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="an adapter's folder says what it is"):
            attach(theirs, folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = folder / "edgempi_adapter.safetensors"
    numbers = {name: torch.zeros(value.shape, dtype=torch.int64) for name, value in read.state.items()}
    save_file(numbers, weights)
    with pytest.raises(UserError, match=r"of torch.int64; parameters are fractional numbers"):
        attach(theirs, folder)
    save_file(dict(list(read.state.items())[1:]), weights)
    with pytest.raises(UserError, match="has shape None; the technique makes it"):
        attach(theirs, folder)
    os.truncate(weights, weights.stat().st_size - 8)
    with pytest.raises(UserError, match="it is what was written"):
        attach(theirs, folder)
    weights.unlink()
    with pytest.raises(UserError, match="it is what was written"):
        attach(theirs, folder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in theirs.modules())


@pytest.mark.parametrize("technique", ["adapter", "parallel_adapter"])
def test_peft_stops_at_what_is_not_its_own(technique: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    _written("bert", technique, tmp_path)
    with pytest.raises((KeyError, ValueError), match="EDGEMPI"):
        peft.PeftModel.from_pretrained(_loaded(MODELS["bert"].cls, tmp_path / "model"), tmp_path / "adapter")


def test_all_weights_are_no_adapter(tmp_path: Path) -> None:
    _, spec = made("bert", tmp_path / "model")
    with pytest.raises(UserError, match="technique full"):
        write_adapter(tmp_path / "a", Base.of(tmp_path / "model", spec, "m"), spec, Tuning(Technique.full), {})
