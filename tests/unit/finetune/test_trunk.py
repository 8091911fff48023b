"""A model in one piece and cut into stages, cached or not, padded or not: one loss, one gradient."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgempi.finetune.data.collate import collate
from edgempi.finetune.data.samples import IGNORED
from edgempi.finetune.techniques import Initial
from edgempi.finetune.trunk import Trunk
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.sizes import pieces
from edgempi.plan.training.technique import Technique, Tuning, trained, trained_shapes
from models.zoo import PAD
from unit.finetune.tuned import (
    KINDS,
    NAMES,
    TUNINGS,
    chain,
    gradients,
    loss,
    made,
    rows,
    samples,
    theirs_loss,
    trunk,
)

TECHNIQUES = list(TUNINGS)
CUTS = {"bert": [(1,), (2,), (1, 2)], "llama": [(1,), (1, 2)], "t5": [(1,), (2,), (3,), (1, 3), (2, 4)]}
CASES = [(name, cuts) for name in KINDS for cuts in CUTS[name]]


def _stages(spec: ModelSpec, cuts: tuple[int, ...]) -> list[tuple[str, ...]]:
    runs = pieces(spec)
    edges = pairwise((0, *cuts, len(runs)))
    return [tuple(unit for run in runs[a:b] for unit in run) for a, b in edges]


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-12 * max(1, gradient.abs().max()), name


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_counted(name: str, technique: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    tuning = TUNINGS[technique]
    found = trunk(tmp_path, spec, technique)
    for unit, tensors in found.trained.by_unit.items():
        assert {n: tuple(t.shape) for n, t in tensors.items()} == trained_shapes(spec, unit, tuning)
        assert {n: t.numel() for n, t in tensors.items()} == trained(spec, unit, tuning)
        assert all(t.requires_grad and t.is_leaf for t in tensors.values())
    loss(found, rows(spec)).total.backward()
    reached = {n for n, t in found.trained.tensors.items() if t.grad is not None and t.grad.abs().max() > 0}
    if technique == "full":  # a bias of keys moves no softmax
        assert {n for n in found.trained.tensors if n not in reached} <= {
            n for n in found.trained.tensors if n.endswith("k.bias")
        }
    assert reached


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", NAMES)
def test_step_zero_is_the_base_model(name: str, technique: str, tmp_path: Path) -> None:
    model, spec = made(name, tmp_path)
    given = rows(spec)
    with torch.no_grad():
        found = loss(trunk(tmp_path, spec, technique, dtype=torch.float32), given).total
        assert found.item() == pytest.approx(theirs_loss(model, spec, given).item(), rel=1e-4)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("name", "cuts"), CASES)
def test_stages_are_the_whole(name: str, cuts: tuple[int, ...], technique: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    given = rows(spec)
    expected = chain([trunk(tmp_path, spec, technique, seed=1)], given)
    found = chain([trunk(tmp_path, spec, technique, units, seed=1) for units in _stages(spec, cuts)], given)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-12)
    _assert_equal(found[1], expected[1])


@pytest.mark.parametrize("initial", Initial)
@pytest.mark.parametrize(("name", "cuts"), [("bert", (1, 2)), ("qwen3", (1, 2)), ("t5", (1, 3)), ("bart", (2, 4))])
def test_a_stage_starts_as_the_whole_does(name: str, cuts: tuple[int, ...], initial: Initial, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    for merge in (True, False):
        tuning = Tuning(Technique.parallel_adapter, reduction=2, merge=merge)
        whole = trunk(tmp_path, spec, "parallel_adapter", tuning=tuning, initial=initial).trained.state()
        parts: dict[str, Tensor] = {}
        for units in _stages(spec, cuts):
            parts |= trunk(tmp_path, spec, "parallel_adapter", units, tuning=tuning, initial=initial).trained.state()
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[n], whole[n]) for n in whole)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("name", "cuts"), [("bert", ()), ("llama", (1,)), ("t5", ()), ("t5", (2,)), ("t5", (1, 3))])
def test_cached_is_uncached_to_the_last_bit(name: str, cuts: tuple[int, ...], merge: bool, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    given = rows(spec)
    tuning = Tuning(Technique.parallel_adapter, reduction=2, merge=merge)

    def stages(backbone: bool) -> list[Trunk]:
        cut = _stages(spec, cuts)
        return [
            trunk(tmp_path, spec, "parallel_adapter", units, seed=1, tuning=tuning, backbone=backbone) for units in cut
        ]

    kept: dict[str, Tensor] = {}
    running = stages(True)
    expected = chain(running, given, kept=kept)
    assert list(kept) == [unit for stage in running for unit in stage.cached_units]
    assert ("head" in kept) == merge
    assert not any(x.requires_grad for x in kept.values())

    found = chain(stages(False), given, read=kept.__getitem__)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][n], x) for n, x in expected[1].items())

    for stage in running:
        stage.drop_backbone()
        for tensor in stage.trained.tensors.values():
            tensor.grad = None
    assert torch.equal(chain(running, given, read=kept.__getitem__)[0], expected[0])


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", [*KINDS, "roberta", "opt", "mistral", "bart"])
def test_padding_does_not_matter(name: str, technique: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    found = trunk(tmp_path, spec, technique, seed=1)
    batch = samples(spec)
    whole = chain([found], collate(batch, PAD))
    for tensor in found.trained.tensors.values():
        tensor.grad = None
    total = 0.0
    for row in range(len(batch)):
        single = loss(found, collate(batch, PAD, (row, row + 1))).total
        single.backward()
        total += single.item()
    assert total == pytest.approx(whole[0].item(), rel=1e-12)
    _assert_equal(gradients(found), whole[1])


@pytest.mark.parametrize("name", KINDS)
def test_no_gradient_enters_the_backbone(name: str, tmp_path: Path) -> None:
    _, spec = made(name, tmp_path)
    found, given = trunk(tmp_path, spec, "parallel_adapter", seed=1), rows(spec)
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total = loss(found, given).total
    learnt = {id(tensor) for tensor in found.trained.tensors.values()}
    assert _leaves(total) == learnt
    # Nothing of the backbone is kept but what the downsamplers read: no queries, no MLP.
    columns = {stack.mlp_columns for stack in spec.stacks.values()}
    assert not [tensor.shape for tensor in saved if tensor.dim() > 2 and tensor.shape[-1] in columns]
    total.backward()
    assert {n for n, t in found.trained.tensors.items() if t.grad is None} == set()


def _leaves(total: Tensor) -> set[int]:
    """The tensors in which the graph of a scalar ends."""
    seen, todo, found = set(), [total.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_rows_without_labels_teach_nothing(technique: str, tmp_path: Path) -> None:
    _, spec = made("llama", tmp_path)
    found, given = trunk(tmp_path, spec, technique, seed=1), rows(spec)
    given.labels.fill_(IGNORED)
    said = loss(found, given)
    said.total.backward()
    assert said.total.item() == 0
    assert not any(gradient.any() for gradient in gradients(found).values())
    assert said.outputs.shape == given.labels.shape


def test_half_precision_trains_in_full(tmp_path: Path) -> None:
    for technique in TECHNIQUES:
        _, spec = made("t5", tmp_path)
        given = rows(spec)
        exact = loss(trunk(tmp_path, spec, technique, dtype=torch.float32, seed=1), given).total.item()
        found = trunk(tmp_path, spec, technique, dtype=torch.bfloat16, seed=1)
        total = loss(found, given).total
        total.backward()
        assert total.item() == pytest.approx(exact, rel=0.05)
        assert {tensor.dtype for tensor in found.trained.tensors.values()} == {torch.float32}
