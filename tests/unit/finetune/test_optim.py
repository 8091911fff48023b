"""Updates and clipping against torch's own, schedules against those of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from edgempi.errors import UserError
from edgempi.finetune.optim import (
    Method,
    Optimizing,
    Schedule,
    Updater,
    counted,
    decays,
    default_rate,
    factor,
    global_norm,
    warm_up_steps,
)
from edgempi.plan.training.technique import Technique

SHAPES = {"enc.0.attention.q.weight": (4, 3), "enc.0.attention.q.bias": (4,), "side.enc.0.gate": (1,), "tied": (5, 2)}


def _tensors(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for n, s in SHAPES.items()}


def _give(tensors: dict[str, Tensor], step: int) -> None:
    """Gradients of a step; large ones, so that they are clipped, and small ones."""
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors.values():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.grad = (noise * (3.0 if step % 2 else 0.01)).to(tensor.dtype)


def _run(updater: Updater, tensors: dict[str, Tensor], steps: range) -> None:
    for step in steps:
        _give(tensors, step)
        updater.update(updater.settings.rate_at(step, 10), global_norm([updater.squares()]))


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warm_up", [0, 3, 0.1, 0.34])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_rates_are_those_of_transformers(schedule: Schedule, warm_up: float, steps: int) -> None:
    from transformers import optimization

    make = getattr(optimization, f"get_{schedule}_schedule_with_warmup")
    lead = warm_up_steps(warm_up, steps)
    assert lead == (math.ceil(warm_up * steps) if 0 < warm_up < 1 else warm_up)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = make(optimizer, lead, **({} if schedule is Schedule.constant else {"num_training_steps": steps}))
    settings = Optimizing(rate=0.3, schedule=schedule, warm_up=warm_up)
    for step in range(steps):
        assert settings.rate_at(step, steps) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


def test_after_the_end_the_rate_stays_at_zero() -> None:
    assert factor(Schedule.linear, 12, 0, 10) == 0.0
    assert factor(Schedule.cosine, 10, 2, 10) == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        Optimizing(weight_decay=0.1, warm_up=2, eps=1e-6, betas=(0.8, 0.95)),
        Optimizing(Method.sgd, 0.1, Schedule.cosine, weight_decay=0.1, momentum=0.9),
        Optimizing(Method.sgd, 0.1, Schedule.constant, clip=None),
    ],
    ids=["adamw", "sgd momentum", "sgd"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_are_those_of_torch(settings: Optimizing, dtype: torch.dtype) -> None:
    ours, theirs = _tensors(dtype), _tensors(dtype)
    _run(Updater(ours, settings), ours, range(10))
    groups = [
        {"params": [t for n, t in theirs.items() if n.endswith(("weight", "tied"))]},
        {"params": [t for n, t in theirs.items() if n.endswith(("bias", "gate"))], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if settings.method is Method.adamw:
        optimizer = torch.optim.AdamW(
            groups, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    for step in range(10):
        _give(theirs, step)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step, 10)
        optimizer.step()
    for name, tensor in ours.items():
        close = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
        torch.testing.assert_close(tensor, theirs[name], **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_clipping_is_torchs_to_the_last_bit(dtype: torch.dtype, scale: float) -> None:
    ours, theirs = _tensors(dtype), _tensors(dtype)
    for tensors in (ours, theirs):
        _give(tensors, 1)
        for tensor in tensors.values():
            assert tensor.grad is not None
            tensor.grad *= scale
    updater = Updater(ours, Optimizing(Method.sgd, 1.0, Schedule.constant, clip=0.5))
    norm = global_norm([updater.squares()])
    # Sums of squares may round the last bit of a norm in float64.
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)), rel=1e-14)
    updater.update(1.0, norm)
    for name, tensor in theirs.items():
        assert tensor.grad is not None
        expected = tensor - tensor.grad
        torch.testing.assert_close(ours[name], expected, rtol=1e-14, atol=1e-14)
        assert dtype == torch.float64 or torch.equal(ours[name], expected)


def test_shared_tensors_count_once_in_the_norm() -> None:
    tensors = _tensors()
    _give(tensors, 1)
    names = list(tensors)
    held = [[*names[:2], "tied"], [*names[:2], "tied"], [names[2], "tied"], []]  # two replicas, a stage, an idle rank
    shares = counted([{name: tensors[name].numel() for name in part} for part in held])
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert all(share <= set(part) for share, part in zip(shares, held, strict=True))
    squares = [
        Updater({n: tensors[n] for n in part}, Optimizing(), share).squares()
        for part, share in zip(held, shares, strict=True)
    ]
    whole = torch.cat([tensor.grad.flatten() for tensor in tensors.values() if tensor.grad is not None]).norm()
    assert global_norm(squares) == pytest.approx(float(whole), rel=1e-14)


def test_counting_is_shared_out() -> None:
    held = {f"layer{i}": 100 for i in range(8)} | {"small": 1}
    assert [len(share) for share in counted([held] * 4)] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("enc.3.attention.q.weight", (4, 4), True),
        ("enc.3.attention.q.lora.a", (2, 4), True),
        ("side.enc.3.down.weight", (2, 4), True),
        ("enc.embed.positions.weight", (9, 4), True),
        ("enc.3.mlp.adapter.down.bias", (2,), False),
        ("enc.3.mlp.norm.weight", (4,), False),
        ("dec.3.attention.q_norm.weight", (4,), False),
        ("side.enc.relative.weight", (8, 4), False),
        ("side.enc.3.gate", (1,), False),
    ],
)
def test_what_decays(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.zeros(shape)) is expected


@pytest.mark.parametrize("settings", [Optimizing(), Optimizing(Method.sgd, 0.1, momentum=0.5), Optimizing(Method.sgd)])
def test_a_new_updater_goes_on_where_the_old_one_was(settings: Optimizing) -> None:
    whole, cut = _tensors(), _tensors()
    _run(Updater(whole, settings), whole, range(8))
    first = Updater(cut, settings)
    _run(first, cut, range(5))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    assert sorted(state) == sorted(f"{kind}.{name}" for kind in settings.kinds for name in cut)
    rest = {name: tensor.detach().clone().requires_grad_() for name, tensor in cut.items()}
    second = Updater(rest, settings)
    second.load({**state, "exp_avg.elsewhere": torch.zeros(3)}, 5)
    _run(second, rest, range(5, 8))
    assert all(torch.equal(rest[name], whole[name]) for name in whole)


def test_state_of_another_optimizer_is_refused() -> None:
    tensors = _tensors()
    with pytest.raises(UserError, match="no exp_avg"):
        Updater(tensors, Optimizing()).load({}, 3)
    state = Updater(tensors, Optimizing()).state()
    state["exp_avg.tied"] = torch.zeros(2, 2)
    with pytest.raises(UserError, match=r"exp_avg\.tied"):
        Updater(tensors, Optimizing()).load(state, 3)


def test_gradients_that_are_set_aside_come_back_summed() -> None:
    tensors = _tensors()
    updater, sums = Updater(tensors, Optimizing()), {name: torch.zeros_like(t) for name, t in tensors.items()}
    for step in range(3):
        _give(tensors, step)
        for name, tensor in tensors.items():
            assert tensor.grad is not None
            sums[name] += tensor.grad
        if step < 2:
            updater.set_aside()
    updater.bring_back()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, sums[name].detach(), rtol=1e-14, atol=1e-15)


def test_a_device_that_trains_nothing() -> None:
    for settings in (Optimizing(), Optimizing(Method.sgd, 0.1, momentum=0.5)):
        updater = Updater({}, settings)
        assert updater.squares() == 0.0
        updater.update(0.1, 5.0)
        assert updater.state() == {}
        updater.load({}, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0}, {"rate": math.nan}, {"warm_up": -1}, {"warm_up": 2.5}, {"weight_decay": -0.1}, {"clip": 0.0},
        {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Optimizing(**wrong)


def test_default_rates() -> None:
    assert default_rate(Method.adamw, Technique.parallel_adapter) == 3e-3
    assert {default_rate(Method.adamw, t) for t in Technique if t is not Technique.parallel_adapter} == {3e-4}
    with pytest.raises(UserError, match="sgd"):
        default_rate(Method.sgd, Technique.lora)
