"""Linear layers: empty shares, column blocks, biases added when they should be, one copy of each weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgempi.kernels.linear import onednn, reference
from edgempi.ops.linear import PACKED, PLAIN, UNPACKED, Linear, Route, pick_route

ROUTES = pytest.mark.parametrize("route", [PLAIN, UNPACKED, PACKED], ids=lambda route: route.name)


def _drawn(outputs: int, inputs: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    return tuple(torch.randn(shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))


@ROUTES
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_column_blocks(route: Route, blocks: int, activation: str) -> None:
    x, weight, bias = _drawn(7, 10)
    linear = Linear(weight.clone(), bias, route, blocks)
    torch.testing.assert_close(linear(x, activation), reference.linear(x, weight, bias, activation))
    torch.testing.assert_close(linear.partial(x), x @ weight.T)
    assert (linear.outputs, linear.inputs) == (7, 10)


@ROUTES
def test_no_outputs(route: Route) -> None:
    linear = Linear(torch.zeros(0, 10), torch.zeros(0), route, 2)
    assert linear(torch.ones(2, 3, 10), "gelu").shape == (2, 3, 0)


@ROUTES
def test_no_inputs_is_the_bias_alone(route: Route) -> None:
    linear = Linear(torch.zeros(4, 0), torch.tensor([1.0, -2.0, 0.0, 4.0]), route)
    assert torch.equal(linear(torch.ones(2, 0), "relu"), torch.tensor([[1.0, 0.0, 0.0, 4.0]] * 2))
    assert torch.equal(linear.partial(torch.ones(2, 0)), torch.zeros(2, 4))


@ROUTES
def test_no_rows(route: Route) -> None:
    linear = Linear(torch.ones(4, 3), torch.ones(4), route)
    assert linear(torch.ones(2, 0, 3)).shape == (2, 0, 4)


def test_a_plain_weight_is_not_copied() -> None:
    table = torch.randn(9, 4)
    for route in (PLAIN, UNPACKED):
        linear = Linear(table[2:6], None, route)
        assert linear._blocks[0][0].data_ptr() == table[2:6].data_ptr()
        x = torch.randn(3, 4)
        torch.testing.assert_close(linear(x), F.linear(x, table[2:6]))


def _fails(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    raise RuntimeError("not on this host")


def _wrong(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    return torch.zeros(len(x), len(weight))


@pytest.mark.parametrize("kernel", [_fails, _wrong])
def test_a_route_that_fails_or_errs_is_not_picked(kernel) -> None:
    assert pick_route(torch.float32, [Route("bad", reference.prepare, kernel)]) is PLAIN


def test_a_faster_route_is_picked() -> None:
    weights: dict[int, torch.Tensor] = {}

    def remembered(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        if id(weight) not in weights:
            weights[id(weight)] = reference.linear(x, weight, bias, activation)
        return weights[id(weight)]

    quick = Route("quick", reference.prepare, remembered)
    assert pick_route(torch.float32, [quick]) is quick


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_host_has_a_route(dtype: torch.dtype) -> None:
    assert pick_route(dtype) in (PLAIN, UNPACKED, PACKED)
    assert onednn.FUSED.keys() <= reference.ACTIVATIONS.keys()
