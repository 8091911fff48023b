"""Linears of fine-tuning: right gradients, and nothing kept that no gradient needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgempi.finetune.techniques.linear import Bottleneck, Factors, LowRank, Product, plain_route, product
from edgempi.ops.linear import PLAIN, UNPACKED, Linear

KERNEL = PLAIN.kernel


def _drawn(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return made.requires_grad_(grad)


def _saved(run: Callable[[], Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return kept


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_product(bias: bool) -> None:
    x, weight = _drawn(2, 3, 5, grad=True), _drawn(4, 5, grad=True)
    b = _drawn(4, grad=True) if bias else None
    assert torch.autograd.gradcheck(lambda *given: product(given[0], given[1], b, KERNEL), (x, weight))
    if b is not None:
        assert torch.autograd.gradcheck(lambda given: product(x, weight, given, KERNEL), (b,))


def test_the_machine_s_kernel_has_the_same_gradients() -> None:
    kernel = plain_route(torch.float32).kernel
    assert plain_route(torch.float32) in (PLAIN, UNPACKED)
    given = [_drawn(2, 7, 24).float(), _drawn(40, 24).float(), _drawn(40).float()]
    target = _drawn(2, 7, 40, seed=3).float()
    found, expected = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    (product(found[0], found[1], found[2], kernel) * target).sum().backward()
    (F.linear(*expected) * target).sum().backward()
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-4)


def test_a_frozen_linear_keeps_no_input() -> None:
    x, weight = _drawn(2, 3, 5, grad=True), _drawn(4, 5)
    frozen = Product([weight], [None], KERNEL)
    kept = _saved(lambda: frozen(x))
    assert [tensor.data_ptr() for tensor in kept] == [weight.data_ptr()]
    assert not _saved(lambda: frozen(x.detach()))
    learnt = Product([weight.clone().requires_grad_()], [None], KERNEL)
    assert [tensor.shape for tensor in _saved(lambda: learnt(x.detach()))] == [x.shape]


def test_several_weights_are_one_linear() -> None:
    x = _drawn(2, 3, 5, grad=True)
    weights, biases = [_drawn(n, 5, grad=True) for n in (2, 3)], [_drawn(n, grad=True) for n in (2, 3)]
    fused = Product(weights, biases, KERNEL)
    assert (fused.outputs, fused.inputs) == (5, 5)
    expected = torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], dim=-1)
    assert torch.allclose(fused(x, "gelu"), F.gelu(expected), atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: Product(given[:2], given[2:], KERNEL)(x), (*weights, *biases))
    kept = {tensor.data_ptr() for tensor in _saved(lambda: fused(x))}
    assert kept == {tensor.data_ptr() for tensor in (x, *weights)}  # no copies of weights


def test_low_rank_is_added_to_its_columns() -> None:
    x, weight, bias = _drawn(2, 3, 5, grad=True), _drawn(9, 5), _drawn(9)
    pairs = [(_drawn(2, 5, seed=s, grad=True), _drawn(n, 2, seed=s, grad=True)) for s, n in ((1, 4), (2, 3))]
    spans = [(0, 4), (6, 9)]

    def made(*given: Tensor) -> Linear:
        factors = [Factors(span, a, b) for span, a, b in zip(spans, given[::2], given[1::2], strict=True)]
        return LowRank(Product([weight], [bias], KERNEL), factors, 0.5, KERNEL)

    flat = [tensor for pair in pairs for tensor in pair]
    dense = weight.clone()
    for (start, stop), (a, b) in zip(spans, pairs, strict=True):
        dense[start:stop] += 0.5 * (b @ a).detach()
    assert torch.allclose(made(*flat)(x), F.linear(x, dense, bias), atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: made(*given)(x), flat)


def test_a_bottleneck_follows() -> None:
    x, base = _drawn(2, 3, 5, grad=True), Product([_drawn(6, 5)], [_drawn(6)], KERNEL)
    parts = [_drawn(2, 6, grad=True), _drawn(2, grad=True), _drawn(6, 2, grad=True), _drawn(6, grad=True)]

    def made(*given: Tensor) -> Linear:
        return Bottleneck(base, Product([given[0]], [given[1]], KERNEL), Product([given[2]], [given[3]], KERNEL))

    y = base(x)
    expected = y + F.linear(F.gelu(F.linear(y, parts[0], parts[1])), parts[2], parts[3])
    assert torch.allclose(made(*parts)(x), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *given: made(*given)(x), parts)


def test_products_run_in_another_precision() -> None:
    x, weight = _drawn(2, 3, 8).float().requires_grad_(), _drawn(4, 8).float().requires_grad_()
    y = Product([weight], [None], KERNEL, torch.bfloat16)(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, F.linear(x.bfloat16(), weight.bfloat16()).float())
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    low = [x.detach().bfloat16().requires_grad_(), weight.detach().bfloat16().requires_grad_()]
    F.linear(*low).sum().backward()
    for mine, other in zip((x, weight), low, strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad.float(), rtol=1e-2, atol=1e-2)


def test_inputs_are_kept_in_the_shorter_form() -> None:
    """However many parts there are, and whichever of the two dtypes is the narrower."""
    x, weights = _drawn(2, 3, 8, grad=True).float(), [_drawn(n, 8, grad=True).float() for n in (4, 2)]
    down = Product(weights, [None, None], KERNEL, torch.bfloat16)
    kept = {t.data_ptr(): t for t in _saved(lambda: down(x)) if t.shape == x.shape}
    assert [t.dtype for t in kept.values()] == [torch.bfloat16]
    short = x.detach().bfloat16()
    kept = {t.data_ptr(): t for t in _saved(lambda: Product(weights, [None, None], KERNEL)(short))}
    assert [t.dtype for t in kept.values() if t.shape == x.shape] == [torch.bfloat16]
    y = Product(weights, [None, None], KERNEL)(short)
    assert torch.equal(y, F.linear(short.float(), torch.cat(weights)))


def test_no_rows_have_gradients_of_zero() -> None:
    x, weight = _drawn(0, 5, grad=True), _drawn(4, 5, grad=True)
    product(x, weight, None, KERNEL).sum().backward()
    assert weight.grad is not None and not weight.grad.any()
