"""Reading safetensors: slices as torch would cut them, and one sentence for every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from edgempi.errors import UserError
from edgempi.models.checkpoint import INDEX, SINGLE, Checkpoint

TENSORS = {"matrix": torch.arange(35.0).view(7, 5), "vector": torch.arange(6.0), "scalar": torch.tensor(3.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint in one file."""
    save_file(TENSORS, tmp_path / SINGLE)
    return tmp_path


def _header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Checkpoint(folder)
    assert caught.value.remedy
    return str(caught.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_slices(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, stored: torch.dtype) -> None:
    folder = tmp_path_factory.mktemp("slices")
    whole = torch.arange(60.0).view(6, 5, 2).to(stored)
    save_file({"x": whole}, folder / SINGLE)
    dim = data.draw(st.integers(0, 1))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, whole.shape[dim])] * 2)))
    with Checkpoint(folder) as checkpoint:
        got = checkpoint.read("x", torch.float32, dim, (start, stop))
        assert torch.equal(got, whole.float().narrow(dim, start, stop - start))
        assert got.is_contiguous()
        assert checkpoint.data_bytes == got.numel() * stored.itemsize


def test_whole_tensors(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        for name, tensor in TENSORS.items():
            assert torch.equal(checkpoint.read(name, torch.float32), tensor)


def test_a_slice_has_memory_of_its_own(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        got = checkpoint.read("matrix", torch.float32, 0, (0, 2))
    assert got.untyped_storage().nbytes() == got.nbytes


def test_shards(tmp_path: Path) -> None:
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"part{i}.safetensors")
    index = {"weight_map": {name: f"part{i}.safetensors" for i, name in enumerate(TENSORS)}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.entries.keys() == TENSORS.keys()
        assert torch.equal(checkpoint.read("matrix", torch.float32, 1, (1, 3)), TENSORS["matrix"][:, 1:3])


def test_fingerprints_tell_exports_apart(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
        other = tmp_path_factory.mktemp("other")
        save_file(tensors, other / SINGLE)
        return Checkpoint(other).fingerprint

    same = Checkpoint(folder).fingerprint
    assert fingerprint(TENSORS) == same
    assert fingerprint({**TENSORS, "vector": torch.arange(7.0)}) != same
    assert fingerprint({**TENSORS, "vector": torch.arange(6.0).half()}) != same


def test_no_folder(tmp_path: Path) -> None:
    assert f"model folder: {tmp_path / 'nowhere'}" in _refused(tmp_path / "nowhere")


def test_no_weights(tmp_path: Path) -> None:
    assert f"no weights; it holds {SINGLE} or {INDEX}" in _refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    said = _refused(tmp_path)
    assert f"only {name}" in said
    assert "never unpickled" in said and "save_pretrained" in said


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_truncated(folder: Path, kept: int) -> None:
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:kept])
    said = _refused(folder)
    assert f"checkpoint file {folder / SINGLE}" in said
    assert "Download or copy the file again" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff" * 64, "in a file of 64; the header fits in the file"),
        (_header(b"not json"), "the header is the JSON that safetensors writes"),
        (_header(b"\xff\xfe\xfd"), "the header is the JSON that safetensors writes"),
        (_header(b"[1, 2]"), "the header is the JSON"),
        (_header(b'{"x": 3}'), "the header is the JSON"),
        (_header(b'{"x": {"dtype": "F32", "shape": [1]}}'), "data_offsets"),
        (_header(b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(8)), "x has 4 bytes"),
        (_header(b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', bytes(8)), "offsets rise"),
        (_header(b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', bytes(4)), "its header names"),
        (_header(b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', bytes(8)), "offsets rise"),
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    assert said in _refused(tmp_path)


def test_a_file_that_shrinks_while_it_is_open(folder: Path) -> None:
    with Checkpoint(folder) as checkpoint:
        (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-40])
        with pytest.raises(UserError, match="ends at byte"):
            for name in TENSORS:
                checkpoint.read(name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float64, torch.float8_e4m3fn])
def test_a_dtype_that_is_no_weight(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"x": torch.zeros(4).to(dtype)}, tmp_path / SINGLE)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(UserError) as caught:
        checkpoint.read("x", torch.float32)
    assert "tensor x in model.safetensors: dtype" in str(caught.value)
    assert "F32, BF16, F16" in str(caught.value)


def test_a_missing_shard(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE, "b": "part2.safetensors"}}))
    assert "missing part2.safetensors" in _refused(folder)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    assert INDEX in _refused(folder)


@pytest.mark.parametrize("escape", ["../secret.safetensors", "/secret.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, escape: str) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (inner / INDEX).write_text(json.dumps({"weight_map": {"matrix": escape}}))
    assert "missing secret.safetensors" in _refused(inner)


def test_the_fingerprint_tells_two_fine_tunes_apart(tmp_path: Path) -> None:
    prints = set()
    for name, value in (("one", 0.0), ("same", 0.0), ("two", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((40, 3), value)}, tmp_path / name / "model.safetensors")
        with Checkpoint(tmp_path / name) as checkpoint:
            prints.add(checkpoint.fingerprint)
    assert len(prints) == 2
