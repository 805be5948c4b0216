"""Claims about the loss, its derivatives and the sums made of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.loss import (
    Array,
    ell,
    ell_prime,
    ell_second,
    energy,
    multiplier,
    slope_in_place,
    slope_scale,
)

pre_activations = st.floats(-10, 10)
labels = st.floats(0, 10)
regularisers = st.floats(1e-3, 1e3)
STEPS = 2.0 ** -np.arange(6, 11)


def order(errors: Array) -> float:
    """Return p of errors ~ STEPS^p."""
    return float(np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0])


@pytest.mark.parametrize("a", [0.01, 1.0, 10.0])
def test_taylor_orders(a: float) -> None:
    """What two derivatives leave of the loss is of order 3, what one leaves of order 2."""
    y_hat, y = 1.1, 1.3
    rest = ell(y_hat + STEPS, y, a) - ell(y_hat, y, a) - STEPS * ell_prime(y_hat, y, a)
    assert order(rest) == pytest.approx(2, abs=0.05)
    rest -= STEPS**2 / 2 * ell_second(y_hat, y, a)
    assert order(rest) == pytest.approx(3, abs=0.05)


@settings(deadline=None)
@given(labels, regularisers)
def test_zero_slope_and_curvature_where_the_label_is_met(y: float, a: float) -> None:
    """At y_hat = y and -y loss and slope vanish, and the curvature is 8 y^2 / (a + y^2)."""
    for y_hat in (y, -y):
        assert ell(y_hat, y, a) == 0
        assert ell_prime(y_hat, y, a) == 0
        assert ell_second(y_hat, y, a) == pytest.approx(8 * y**2 / (a + y**2), rel=1e-14)


@settings(deadline=None)
@given(pre_activations, labels, regularisers)
def test_symmetry(y_hat: float, y: float, a: float) -> None:
    """Loss and curvature are even in y_hat and in y, the slope is odd in y_hat, to the bit."""
    assert ell(-y_hat, y, a) == ell(y_hat, -y, a) == ell(y_hat, y, a)
    assert ell_second(-y_hat, y, a) == ell_second(y_hat, -y, a) == ell_second(y_hat, y, a)
    assert ell_prime(-y_hat, y, a) == -ell_prime(y_hat, y, a)


@settings(deadline=None)
@given(pre_activations, labels, regularisers)
def test_curvature_is_above_minus_four(y_hat: float, y: float, a: float) -> None:
    """No sample curves below -4; the bound is approached at y_hat = 0 for large labels."""
    assert ell_second(y_hat, y, a) >= -4
    assert ell_second(0.0, 1e6, a) == pytest.approx(-4, rel=1e-8)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("a", [0.01, 1.0])
def test_slope_in_place_is_ell_prime(precision: type[np.floating], a: float) -> None:
    """Both forms of the slope agree to a few roundings; y_hat stays, the result is `out`."""
    rng = np.random.default_rng(0)
    y_hat = rng.standard_normal((200, 3)).astype(precision)
    y = np.abs(rng.standard_normal(200)).astype(precision)
    before, out = y_hat.copy(), np.empty_like(y_hat)
    returned = slope_in_place(y_hat, np.square(y[:, None]), slope_scale(y, a), out)
    assert returned is out
    assert np.array_equal(y_hat, before)
    tolerance = 4 * float(np.finfo(precision).eps)
    np.testing.assert_allclose(out, ell_prime(y_hat, y[:, None], a), rtol=tolerance)


def test_multiplier_is_the_radial_slope_of_the_energy() -> None:
    """E((1 + h) y_hat) = E + h mu up to order 2, start by start."""
    rng = np.random.default_rng(1)
    y_hat, y = rng.standard_normal((50, 3)), np.abs(rng.standard_normal(50))
    start, mu = energy(y_hat, y, 1.0), multiplier(y_hat, y, 1.0)
    rest = np.array([energy((1 + h) * y_hat, y, 1.0) - start - h * mu for h in STEPS])
    for r in range(3):
        assert order(rest[:, r]) == pytest.approx(2, abs=0.1)


def test_means_are_accumulated_in_double_precision() -> None:
    """The means over 10^6 samples in float32 are those in float64 to 1e-6."""
    rng = np.random.default_rng(2)
    y_hat = rng.standard_normal((1_000_000, 2), dtype=np.float32)
    y = np.abs(rng.standard_normal(1_000_000, dtype=np.float32))
    for mean in (energy, multiplier):
        single, double = mean(y_hat, y, 1.0), mean(y_hat.astype(float), y.astype(float), 1.0)
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, double, rtol=1e-6)
