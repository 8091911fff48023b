"""Fits find what made the numbers, and never a negative time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgempi.cluster.profile import ElementTime, LinearTime
from edgempi.profiling.fit import Elements, Product, fit_elements, fit_linear, residuals

SHAPES = [(m, n, k) for m in (1, 30, 284) for n, k in ((64, 64), (1024, 256), (256, 4096))]
LINEAR = st.builds(
    LinearTime,
    call_s=st.just(0.0) | st.floats(1e-6, 1e-3),
    s_per_flop=st.floats(1e-12, 1e-10),
    s_per_weight=st.just(0.0) | st.floats(1e-11, 1e-9),
)


@given(LINEAR)
def test_linear_times_are_found_again(true: LinearTime) -> None:
    fitted, off = fit_linear([Product(m, n, k, true.seconds(m, n, k)) for m, n, k in SHAPES])
    assert off.worst < 1e-6
    assert fitted.s_per_flop == pytest.approx(true.s_per_flop, rel=1e-3)
    assert fitted.seconds(77, 500, 900) == pytest.approx(true.seconds(77, 500, 900), rel=1e-4)


@given(st.floats(1e-6, 1e-3), st.floats(1e-10, 1e-8))
def test_elementwise_times_are_found_again(call_s: float, s_per_element: float) -> None:
    true = ElementTime(call_s, s_per_element)
    fitted, off = fit_elements([Elements(e, true.seconds(e)) for e in (1e3, 1e5, 1e6)])
    assert (fitted.call_s, fitted.s_per_element) == pytest.approx((call_s, s_per_element), rel=1e-6)
    assert off.worst < 1e-6


@given(st.lists(st.floats(1e-6, 1.0), min_size=len(SHAPES), max_size=len(SHAPES)))
def test_no_time_is_negative(seconds: list[float]) -> None:
    fitted, off = fit_linear([Product(*shape, taken) for shape, taken in zip(SHAPES, seconds, strict=True)])
    assert min(fitted.call_s, fitted.s_per_flop, fitted.s_per_weight) >= 0
    assert off.median <= off.worst


def test_small_shapes_count_as_much_as_large_ones() -> None:
    fitted, _ = fit_elements([Elements(10, 1.1e-6), Elements(10, 0.9e-6), Elements(1e7, 1.0)])
    assert fitted.seconds(10) == pytest.approx(1e-6, rel=0.02)
    assert fitted.seconds(1e7) == pytest.approx(1.0, rel=0.02)


def test_one_shape_is_enough() -> None:
    fitted, _ = fit_elements([Elements(100, 2.0)])
    assert fitted.seconds(100) == pytest.approx(2.0)


def test_residuals_are_shares_of_the_measured() -> None:
    off = residuals([(1.1, 1.0), (1.0, 1.0), (3.0, 2.0)])
    assert (off.median, off.worst) == pytest.approx((0.1, 0.5))
