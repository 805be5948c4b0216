"""Claims about every loss, its derivatives and the sums made of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphasweep.kernels.loss import (
    LOSSES,
    AmplitudeLoss,
    Array,
    IntensityLoss,
    Loss,
    energy,
    multiplier,
)
from tests.losses import Welsch

pre_activations = st.floats(-10, 10)
labels = st.floats(0, 10)
regularisers = st.floats(1e-3, 1e3)
STEPS = 2.0 ** -np.arange(6, 11)

# Every loss that a sweep file can name, at small, usual and large parameters, and one that has
# nothing of its own but the formulas.
EVERY = [
    kind(**dict.fromkeys(kind.__dataclass_fields__, value))
    for kind in (*LOSSES.values(), Welsch)
    for value in (0.1, 1.0, 10.0)
]
every_loss = pytest.mark.parametrize("loss", EVERY, ids=str)


def order(errors: Array) -> float:
    """Return p of errors ~ STEPS^p."""
    return float(np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0])


@every_loss
def test_taylor_orders(loss: Loss) -> None:
    """What two derivatives leave of the loss is of order 3, what one leaves of order 2."""
    y_hat, y = 1.1, 1.3
    rest = loss.ell(y_hat + STEPS, y) - loss.ell(y_hat, y) - STEPS * loss.prime(y_hat, y)
    assert order(rest) == pytest.approx(2, abs=0.05)
    rest -= STEPS**2 / 2 * loss.second(y_hat, y)
    if isinstance(loss, AmplitudeLoss):  # a parabola
        assert np.abs(rest).max() < 1e-15
    else:
        assert order(rest) == pytest.approx(3, abs=0.05)


@every_loss
def test_zero_where_the_label_is_met(loss: Loss) -> None:
    """At y_hat = y and -y loss and slope vanish, and the curvature does not fall below zero."""
    y = np.linspace(0, 5, 51)
    for y_hat in (y, -y):
        assert not loss.ell(y_hat, y).any()
        assert not loss.prime(y_hat, y).any()
        assert (loss.second(y_hat, y) >= 0).all()


@every_loss
def test_sup_of_minus_second_is_a_bound_that_is_approached(loss: Loss) -> None:
    """No sample curves below -sup; somewhere -ell'' comes within a thousandth of it.

    Where there is no bound it grows with the label.
    """
    y_hat, y = np.geomspace(1e-6, 10, 200), np.geomspace(1e-6, 300, 400)
    values = -loss.second(np.append(y_hat, 0)[:, None], np.append(y, 0)[None, :])
    assert values.max() <= loss.sup_minus_second
    bound = min(loss.sup_minus_second, 1e5)
    assert values.max() >= bound - 0.001 * abs(bound)


@every_loss
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_slope_in_place_is_prime(loss: Loss, precision: type[np.floating]) -> None:
    """Both forms of the slope agree to a few roundings; y_hat stays, the result is `out`."""
    rng = np.random.default_rng(0)
    y_hat = rng.standard_normal((200, 3)).astype(precision)
    y = np.abs(rng.standard_normal(200)).astype(precision)
    before, out = y_hat.copy(), np.empty_like(y_hat)
    terms = loss.label_terms(y, -0.3)
    assert {(term.shape, term.dtype) for term in terms} == {((200, 1), y.dtype)}
    assert loss.slope_in_place(y_hat, terms, out) is out
    assert np.array_equal(y_hat, before)
    tolerance = 6 * float(np.finfo(precision).eps)
    np.testing.assert_allclose(out, -0.3 * loss.prime(y_hat, y[:, None]), rtol=tolerance)


@every_loss
def test_precision_is_kept(loss: Loss) -> None:
    """Of labels in float32 no function makes float64, which would double the time of a step."""
    y_hat, y = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)
    for function in (loss.ell, loss.prime, loss.second):
        assert function(y_hat, y).dtype == np.float32


@every_loss
def test_a_loss_travels(loss: Loss) -> None:
    """It is a value: it goes to workers as it is, and cannot be changed."""
    assert pickle.loads(pickle.dumps(loss)) == loss
    with pytest.raises(AttributeError):
        loss.a = 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("a", [0.0, -1.0, np.nan, np.inf])
def test_parameters_are_positive(a: float) -> None:
    """A parameter that no loss can have is refused by name."""
    with pytest.raises(ValueError, match="a must be finite and > 0; got"):
        IntensityLoss(a)


@settings(deadline=None)
@given(labels, regularisers)
def test_curvature_of_the_intensity_loss_where_the_label_is_met(y: float, a: float) -> None:
    """At y_hat = y and -y it is 8 y^2 / (a + y^2)."""
    for y_hat in (y, -y):
        expected = pytest.approx(8 * y**2 / (a + y**2), rel=1e-14)
        assert IntensityLoss(a).second(y_hat, y) == expected


@settings(deadline=None)
@given(pre_activations, labels, regularisers)
def test_symmetry(y_hat: float, y: float, a: float) -> None:
    """Loss and curvature are even in y_hat and in y, the slope is odd in y_hat, to the bit."""
    loss = IntensityLoss(a)
    assert loss.ell(-y_hat, y) == loss.ell(y_hat, -y) == loss.ell(y_hat, y)
    assert loss.second(-y_hat, y) == loss.second(y_hat, -y) == loss.second(y_hat, y)
    assert loss.prime(-y_hat, y) == -loss.prime(y_hat, y)


@every_loss
def test_multiplier_is_the_radial_slope_of_the_energy(loss: Loss) -> None:
    """E((1 + h) y_hat) = E + h mu up to order 2, start by start."""
    rng = np.random.default_rng(1)
    y_hat, y = rng.standard_normal((50, 3)), np.abs(rng.standard_normal(50))
    start, mu = energy(y_hat, y, loss), multiplier(y_hat, y, loss)
    # Short beside the narrowest loss, whose slope changes within 0.1.
    shorter = STEPS / 64
    rest = np.array([energy((1 + h) * y_hat, y, loss) - start - h * mu for h in shorter])
    for r in range(3):
        assert order(rest[:, r]) == pytest.approx(2, abs=0.1)


def test_means_are_accumulated_in_double_precision() -> None:
    """The means over 10^6 samples in float32 are those in float64 to 1e-6."""
    rng = np.random.default_rng(2)
    y_hat = rng.standard_normal((1_000_000, 2), dtype=np.float32)
    y = np.abs(rng.standard_normal(1_000_000, dtype=np.float32))
    loss = IntensityLoss(1.0)
    for mean in (energy, multiplier):
        single, double = mean(y_hat, y, loss), mean(y_hat.astype(float), y.astype(float), loss)
        assert single.dtype == np.float64
        np.testing.assert_allclose(single, double, rtol=1e-6)
