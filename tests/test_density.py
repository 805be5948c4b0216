"""Claims about the density of the Hessian's eigenvalues."""

import numpy as np
import pytest
from scipy.integrate import quad

from alphasweep.kernels.density import density, lanczos_density
from alphasweep.kernels.hessian import RiemannianHessian
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.methods import METHODS
from alphasweep.kernels.spectrum import spectrum

LOSS = IntensityLoss(1.0)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 8.0])
def test_one_curvature_is_the_law_of_marchenko_and_pastur(alpha: float) -> None:
    """Edges, density and share below of c X^T X / alpha, by quadrature of the known density."""
    c, mu = 3.0, 0.7
    found = density(np.full(50, c), alpha, mu=mu)
    low, high = (c * (1 + sign * alpha**-0.5) ** 2 for sign in (-1, 1))
    assert found.eigenvalue[[0, -1]] == pytest.approx([low - mu, high - mu], rel=1e-8)
    assert found.at_zero == pytest.approx(max(0, 1 - alpha))

    def known(x: float) -> float:
        return float(alpha * np.sqrt(max(0.0, (high - x) * (x - low))) / (2 * np.pi * c * x))

    for k in (40, 150, 300, -100):
        x = found.eigenvalue[k] + mu
        assert found.density[k] == pytest.approx(known(x), rel=1e-6)
        below = quad(known, low, x, epsabs=1e-11)[0] + found.at_zero
        assert found.cumulative[k] == pytest.approx(below, abs=1e-8)


def curvatures(M: int, seed: int = 0) -> Array:
    """Draw ell'' as it is at a random start."""
    rng = np.random.default_rng(seed)
    return LOSS.second(rng.standard_normal(M), np.abs(rng.standard_normal(M)))


@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_the_density_integrates_to_one(alpha: float) -> None:
    """Its integral between any points is the share of the eigenvalues there: 1 in all, to 1e-6.

    With curvatures of both signs that have no gaps, so that the bulk is one piece.
    """
    c = np.linspace(-1.0, 3.0, 400)
    found = density(c, alpha, points=16_000)
    pieces = np.diff(found.eigenvalue) * (found.density[1:] + found.density[:-1]) / 2
    total = np.append(0, np.cumsum(pieces))
    rises = found.cumulative - found.cumulative[0]
    np.testing.assert_allclose(total, rises, atol=1e-6)
    assert total[-1] == pytest.approx(1, abs=1e-6)


def test_all_eigenvalues_are_somewhere() -> None:
    """Also where large curvatures have islands of their own the share below ends at 1."""
    for alpha in (0.7, 4.0):
        found = density(curvatures(500), alpha)
        assert found.cumulative[-1] == pytest.approx(1, abs=1e-12)
        assert np.all(np.diff(found.cumulative) > -1e-12)
        assert np.all(np.diff(found.eigenvalue) > 0)


def test_edge_is_that_of_the_spectrum() -> None:
    """The lower end of the density is the bulk edge that is recorded with a run."""
    rng = np.random.default_rng(3)
    y_hat, y = rng.standard_normal((4000, 1)), np.abs(rng.standard_normal(4000))
    recorded = spectrum(y_hat, y, loss=LOSS, N=1000, mu=np.array([0.3]))
    found = density(LOSS.second(y_hat[:, 0], y), 4.0, mu=0.3)
    assert found.eigenvalue[0] == pytest.approx(recorded.bulk_edge[0], abs=1e-8)


def test_weights_count_samples() -> None:
    """A curvature of twice the probability is one that occurs twice."""
    c = curvatures(40)
    twice = density(np.append(c, c[:20]), 3.0)
    weighted = density(c, 3.0, weight=np.where(np.arange(40) < 20, 2.0, 1.0))
    at = np.linspace(-5, 20, 30)
    np.testing.assert_allclose(twice.below(at), weighted.below(at), atol=2e-3)


def points_of_a_run(N: int, times: list[float]) -> tuple[Instance, dict[float, Array]]:
    """Descend at alpha = 4 by the flow, and keep w at some times."""
    instance = draw_instance(0, N, 0, M=4 * N)
    kept: dict[float, Array] = {}
    METHODS["flow"](
        instance,
        uniform_starts(0, N, 0, [0]),
        loss=LOSS,
        record=times,
        probe=lambda k, w: kept.setdefault(times[k], w.copy()),
        rest_within=0.0,
    )
    return instance, kept


@pytest.mark.long
def test_the_histogram_of_a_run() -> None:
    """At N = 2000, alpha = 4, density and 30 bins of all eigenvalues differ by < 2 % (L1).

    At the start, at the transition and late; a bin's count is a whole number, which alone is 1 %.
    """
    instance, points = points_of_a_run(2000, [0.0, 2.5, 12.0])
    assert len(points) == 3
    for w in points.values():
        hessian = RiemannianHessian(instance, w, loss=LOSS)
        values = np.linalg.eigvalsh(hessian.dense())[:-1]  # the last is along w
        y_hat = instance.sensing.forward(w[:, None])[:, 0].astype(float)
        found = density(LOSS.second(y_hat, instance.y.astype(float)), 4.0, mu=hessian.mu)
        top = np.interp(0.93, found.cumulative, found.eigenvalue)
        edges = np.append(np.linspace(values[0] - 0.1, top, 30), 1e9)
        shares = np.histogram(values, edges)[0] / len(values)
        assert np.abs(shares - np.diff(found.below(edges))).sum() < 0.02
        assert np.abs(shares - np.diff(found.below(edges - 0.3))).sum() > 0.02


def test_lanczos_finds_the_density_by_products_alone() -> None:
    """Shares below any value are those of all eigenvalues, to 4 %, from 8 vectors at N = 300."""
    instance, points = points_of_a_run(300, [0.0, 2.0])
    w = points[2.0]
    values = np.linalg.eigvalsh(RiemannianHessian(instance, w, loss=LOSS).dense())[:-1]
    rng = np.random.default_rng(0)
    found, share = lanczos_density(instance, w, loss=LOSS, rng=rng)
    assert share.sum() == pytest.approx(1, abs=1e-12)
    assert found[0] == pytest.approx(values[0], rel=1e-4)
    at = np.quantile(values, np.linspace(0.02, 0.98, 40))
    below = np.interp(at, found, np.cumsum(share) - share / 2)
    assert np.abs(below - np.searchsorted(values, at) / len(values)).max() < 0.04
