"""Claims about edge, outlier and overlap at large N."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.spectrum import Spectrum, spectrum

FIELDS = ("bulk_edge", "outlier", "outlier_overlap")
aspects = st.integers(2, 40).map(lambda n: n / 4)  # alpha, 0.5 to 10; 1000 alpha is an integer


def of_constant_labels(y_hat: float, y: float, a: float, alpha: float) -> Spectrum:
    """Return the spectrum of a problem whose samples are all alike."""
    M = round(1000 * alpha)
    y_hats, ys = np.full((M, 1), y_hat), np.full(M, y)
    return spectrum(y_hats, ys, loss=IntensityLoss(a), N=1000, mu=np.zeros(1))


@settings(deadline=None)
@given(aspects, st.floats(0.1, 10))
def test_edge_of_constant_positive_curvature(alpha: float, a: float) -> None:
    """Where all ell'' equal c > 0, the edge is Marchenko-Pastur's, c (1 - 1/sqrt(alpha))^2.

    With fewer samples than dimensions it is 0, where the kernel of X lies.
    """
    c = 8 / (a + 1)
    edge = c * (1 - alpha**-0.5) ** 2 if alpha > 1 else 0
    theory = of_constant_labels(1.0, 1.0, a, alpha)
    assert theory.bulk_edge[0] == pytest.approx(edge, abs=1e-9)
    assert np.isnan(theory.outlier[0])
    assert np.isnan(theory.outlier_overlap[0])


@settings(deadline=None)
@given(aspects, st.floats(0.1, 10), st.floats(0.05, 5))
def test_outlier_of_constant_negative_curvature(alpha: float, a: float, theta: float) -> None:
    """With all ell'' = -t and y^2 = 1 + theta, Hessian and signal are a spiked Wishart matrix.

    Edge -t (1 + 1/sqrt(alpha))^2; iff alpha theta^2 > 1 there is an outlier, at
    -t (1 + theta) (1 + 1/(alpha theta)), whose squared overlap with the signal is
    (1 - 1/(alpha theta^2)) / (1 + 1/(alpha theta)) (Baik, Ben Arous, Peche; Paul).
    """
    y2 = 1 + theta
    t = 4 * y2 / (a + y2)
    theory = of_constant_labels(0.0, math.sqrt(y2), a, alpha)
    assert theory.bulk_edge[0] == pytest.approx(-t * (1 + alpha**-0.5) ** 2, rel=1e-9)
    strength = alpha * theta**2
    if strength < 1 - 1e-6:
        assert np.isnan(theory.outlier[0])
        assert np.isnan(theory.outlier_overlap[0])
    elif strength > 1 + 1e-6:
        position = -t * (1 + theta) * (1 + 1 / (alpha * theta))
        overlap = (1 - 1 / strength) / (1 + 1 / (alpha * theta))
        assert theory.outlier[0] == pytest.approx(position, rel=1e-9)
        assert theory.outlier_overlap[0] == pytest.approx(overlap, rel=1e-7, abs=1e-9)


def initial_labels(M: int, R: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw y_hat (M, R) and y (M,) as they are at random starts: independent N(0, 1)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((M, R)), np.abs(rng.standard_normal(M))


class ExactLaw:
    """Edge and outlier of independent y, y_hat ~ N(0, 1), by quadrature and in gamma.

    With nodes clustered at 0, z = 10 u^3, where the integrands vary at y_hat ~ sqrt(a).
    """

    def __init__(self, a: float, alpha: float) -> None:
        u, weight = np.polynomial.legendre.leggauss(400)
        u = (1 + u) / 2
        z = 10 * u**3
        self.w = 15 * weight * u**2 * np.exp(-(z**2) / 2) * math.sqrt(2 / math.pi)
        self.t, self.y2, self.alpha = (
            -IntensityLoss(a).second(z[None, :], z[:, None]),
            z[:, None] ** 2,
            alpha,
        )
        self.hard = self._edge(0.25) < 0
        self.gamma_edge = 0.25 if self.hard else brentq(self._edge, 1e-6, 0.25, xtol=1e-15)
        self.gamma_outlier = brentq(self._signal, 1e-6, self.gamma_edge, xtol=1e-15)

    def _mean(self, f: Array) -> float:
        return float(self.w @ f @ self.w)

    def _q(self, gamma: float) -> Array:
        return self.t * gamma / (1 - self.t * gamma)

    def _edge(self, gamma: float) -> float:
        return self.alpha * self._mean(self._q(gamma) ** 2) - 1

    def _signal(self, gamma: float) -> float:
        return self.alpha * self._mean(self._q(gamma) * (self.y2 - 1)) - 1

    def position(self, gamma: float) -> float:
        """Return the eigenvalue of the Hessian, without mu, that belongs to gamma."""
        return -1 / (self.alpha * gamma) - self._mean(self.t / (1 - self.t * gamma))

    def overlap(self) -> float:
        """Return the squared overlap of the outlier's eigenvector with the signal."""
        g = self.gamma_outlier
        resolvent2 = (self.t / (1 - self.t * g)) ** 2
        slope = -1 / (self.alpha * g**2) + self._mean(resolvent2)
        return slope / (slope - self._mean(resolvent2 * self.y2))


def sampled(a: float, alpha: float, M: int, samples: int) -> Array:
    """Return edge, outlier and overlap of the labels of some random starts, (samples, 3)."""
    rows = []
    for seed in range(samples):
        y_hat, y = initial_labels(M, 1, seed)
        theory = spectrum(y_hat, y, loss=IntensityLoss(a), N=round(M / alpha), mu=np.zeros(1))
        rows.append([getattr(theory, field)[0] for field in FIELDS])
    return np.array(rows)


@pytest.mark.parametrize(("a", "alpha"), [(0.1, 4.0), (1.0, 4.0), (3.0, 10.0)])
def test_labels_of_a_start_against_the_exact_law(a: float, alpha: float) -> None:
    """Edge, outlier and overlap of 200,000 random labels are the exact law's, where it is soft.

    Within five standard errors of 16 samples (t with 15 degrees of freedom, nine comparisons): a
    false alarm in 1 of 600 choices of the seeds.
    """
    law = ExactLaw(a, alpha)
    assert not law.hard
    expected = (law.position(law.gamma_edge), law.position(law.gamma_outlier), law.overlap())
    samples = sampled(a, alpha, 200_000, 16)
    spread = samples.std(axis=0, ddof=1)
    assert np.all(spread < 0.03)
    assert np.all(np.abs(samples.mean(axis=0) - expected) < 5 * spread / 4)


def test_labels_of_a_start_at_a_hard_edge() -> None:
    """At a = 10, alpha = 10 outlier and overlap are the exact law's; the edge is on its way there.

    The largest t of M labels creeps towards its supremum 4 like 1/log M only, and the root s_e of
    the labels' own edge stays below 4: at M = 200,000 the edge is still above the hard one, by less
    than 0.05. False alarms as in the test above.
    """
    law = ExactLaw(10.0, 10.0)
    assert law.hard
    samples = sampled(10.0, 10.0, 200_000, 16)
    error = np.abs(samples.mean(axis=0) - (0, law.position(law.gamma_outlier), law.overlap()))
    assert np.all(error[1:] < 5 * samples[:, 1:].std(axis=0, ddof=1) / 4)
    above = samples[:, 0] - law.position(0.25)
    assert np.all((above > 0) & (above < 0.05))


def test_one_start_does_not_depend_on_another() -> None:
    """A start alone has the values it has in company, to rounding, whoever the company is.

    To rounding, because one of the sums is a product of BLAS, whose order follows the number of
    starts. A start that is not finite is NaN and warns of nothing.
    """
    y_hat, y = initial_labels(400, 4)
    mu = np.arange(4.0)
    alone = [
        spectrum(y_hat[:, [r]], y, loss=IntensityLoss(1.0), N=100, mu=mu[[r]]) for r in range(4)
    ]
    y_hat[:, 2] = np.nan
    together = spectrum(y_hat, y, loss=IntensityLoss(1.0), N=100, mu=mu)
    for field in FIELDS:
        expected = np.array([getattr(one, field)[0] for one in alone])
        expected[2] = np.nan
        np.testing.assert_allclose(getattr(together, field), expected, rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 10.0]), st.floats(-5, 5))
def test_invariances(seed: int, a: float, mu: float) -> None:
    """Signs of y_hat change no bit, the order of samples only roundings, and mu is subtracted."""
    y_hat, y = initial_labels(300, 2, seed)
    zero = np.zeros(2)
    plain = spectrum(y_hat, y, loss=IntensityLoss(a), N=100, mu=zero)
    flipped = spectrum(-y_hat, y, loss=IntensityLoss(a), N=100, mu=zero)
    order = np.random.default_rng(seed).permutation(300)
    permuted = spectrum(y_hat[order], y[order], loss=IntensityLoss(a), N=100, mu=zero)
    shifted = spectrum(y_hat, y, loss=IntensityLoss(a), N=100, mu=np.full(2, mu))
    for field in FIELDS:
        value = getattr(plain, field)
        assert np.array_equal(getattr(flipped, field), value, equal_nan=True)
        np.testing.assert_allclose(getattr(permuted, field), value, rtol=1e-8, atol=1e-8)
        shift = 0 if field == "outlier_overlap" else mu
        np.testing.assert_allclose(getattr(shifted, field), value - shift, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 10.0]), aspects)
def test_order_of_the_spectrum(seed: int, a: float, alpha: float) -> None:
    """An outlier lies below the edge, and its overlap in (0, 1); both exist or neither."""
    N = 100
    y_hat, y = initial_labels(round(alpha * N), 3, seed)
    theory = spectrum(y_hat, y, loss=IntensityLoss(a), N=N, mu=np.zeros(3))
    assert np.all(np.isfinite(theory.bulk_edge))
    exists = np.isfinite(theory.outlier)
    assert np.array_equal(exists, np.isfinite(theory.outlier_overlap))
    assert np.all(theory.outlier[exists] <= theory.bulk_edge[exists])
    overlap = theory.outlier_overlap[exists]
    assert np.all((overlap > -1e-9) & (overlap < 1))
