"""Claims about where descents begin, and what theory knows of it."""

import math

import numpy as np
import pytest

from alphasweep.analysis.initial import initial_hessian, start_overlap
from alphasweep.kernels import starts
from alphasweep.kernels.hessian import lowest_eigenpairs
from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import AmplitudeLoss, Array, IntensityLoss, QuarticLoss
from alphasweep.kernels.problem import STARTS, Problem
from alphasweep.kernels.spectrum import spectrum

LOSS = IntensityLoss(1.0)


def drawn(kind: str, N: int, alpha: float, seed: int = 0, R: int = 1, **more: float) -> Array:
    """Draw starts of a kind, with their instance."""
    problem = Problem(LOSS, start=kind, **more)  # type: ignore[arg-type]
    instance = problem.instance(3, N, seed, M=round(alpha * N))
    return instance, problem.starts(3, N, seed, range(R), instance=instance)  # type: ignore[return-value]


def overlap(instance: Instance, W: Array) -> Array:
    """Overlaps w.w_star/N of each start."""
    return np.asarray(instance.w_star.astype(float) @ W.astype(float) / instance.N)


@pytest.mark.parametrize("kind", STARTS)
def test_every_start_lies_on_the_sphere_and_is_named_by_its_number(kind: str) -> None:
    """Norms are sqrt(N), and a start is the same whatever others are drawn with it."""
    more = {"start_overlap": 0.2} if kind == "overlap" else {}
    instance, W = drawn(kind, 60, 4.0, R=3, **more)
    np.testing.assert_allclose(np.square(W.astype(float)).sum(axis=0), 60, rtol=1e-6)
    assert W.shape == (60, 3)
    assert W.dtype == np.float32
    problem = Problem(LOSS, start=kind, **more)  # type: ignore[arg-type]
    np.testing.assert_array_equal(problem.starts(3, 60, 0, [2], instance=instance)[:, 0], W[:, 2])
    same = np.array_equal(W[:, 0], W[:, 1])
    assert same == (kind in starts.WEIGHTS)


def test_starts_at_an_overlap_have_it() -> None:
    """To rounding, and are uniform around the signal: their mean beside it vanishes."""
    instance, W = drawn("overlap", 50, 4.0, R=2000, start_overlap=0.3)
    np.testing.assert_allclose(overlap(instance, W), 0.3, atol=1e-6)
    rest = W - 0.3 * instance.w_star[:, None]
    assert np.abs(rest.mean(axis=1)).max() < 5 / math.sqrt(2000)


@pytest.mark.parametrize("kind", ["spectral", "trimmed"])
def test_spectral_starts_are_leading_eigenvectors(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of X^T diag(weights) X, solved densely here, by ARPACK and by the dense route of the code."""
    instance, dense = drawn(kind, 120, 3.0)
    X = instance.sensing.forward(np.eye(120, dtype=np.float32)).astype(float)
    matrix = X.T @ (starts.WEIGHTS[kind](instance.y, 3.0)[:, None] * X)
    leading = np.linalg.eigh(matrix)[1][:, -1]
    monkeypatch.setattr(starts, "DENSE_UP_TO", 10)
    _, by_products = drawn(kind, 120, 3.0)
    for W in (dense, by_products):
        assert abs(leading @ W[:, 0]) / math.sqrt(120) == pytest.approx(1, abs=1e-5)


def test_hessian_starts_are_lowest_eigenvectors_of_points_of_their_own() -> None:
    """Each is that of the Riemannian Hessian at the uniform start of its number."""
    instance, W = drawn("hessian", 60, 4.0, R=2)
    for k in range(2):
        w = STARTS["uniform"](3, 60, 0, [k], precision="float32")[:, 0]
        vector = lowest_eigenpairs(instance, w, loss=LOSS, modes=1).vectors[:, 0]
        assert abs(vector @ W[:, k]) / math.sqrt(60) == pytest.approx(1, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "alpha", "present"),
    [("spectral", 1.5, True), ("trimmed", 4.0, True), ("hessian", 4.0, True),
     ("spectral", 0.4, False), ("trimmed", 1.0, False)],
)  # fmt: skip
def test_overlaps_are_those_of_the_theory(kind: str, alpha: float, present: bool) -> None:
    """Mean squared overlap of 12 matrices at N = 600, to four standard errors and 0.02.

    Where the theory has no outlier what is left falls with N: below 0.06 here.
    """
    found = [overlap(*drawn(kind, 600, alpha, seed=s))[0] ** 2 for s in range(12)]
    expected = start_overlap(kind, alpha, LOSS)
    assert (expected > 0) == present
    if present:
        error = np.std(found) / math.sqrt(12)
        assert np.mean(found) == pytest.approx(expected, abs=4 * error + 0.02)
    else:
        assert np.mean(found) < 0.06


def test_spectral_starts_see_the_signal_from_their_threshold_on() -> None:
    """The optimal weights from alpha = 1/2; no others before; the Hessian from alpha_BBP_init."""
    for blind in (0.1, 0.3, 0.5):
        assert start_overlap("spectral", blind) == 0
    assert start_overlap("spectral", 0.51) > 0
    for alpha in (0.6, 1.0, 2.0, 5.0):
        best = start_overlap("spectral", alpha)
        assert best > max(start_overlap(k, alpha, LOSS) for k in ("trimmed", "hessian", "uniform"))
    assert start_overlap("hessian", 1.13, LOSS) == 0
    assert start_overlap("hessian", 1.14, LOSS) > 0
    with pytest.raises(ValueError, match=r"kind must be uniform, hessian .* got overlap"):
        start_overlap("overlap", 2.0)


@pytest.mark.parametrize(("a", "alpha"), [(0.01, 4.0), (1.0, 2.0), (5.0, 5.0)])
def test_the_exact_law_is_the_limit_of_labels(a: float, alpha: float) -> None:
    """Edge, outlier and overlap of 20 times 400,000 drawn labels are those of the law.

    To four standard errors of their mean.
    """
    rng = np.random.default_rng(0)
    loss, rows = IntensityLoss(a), []
    for _ in range(20):
        y_hat, y = rng.standard_normal((400_000, 1)), np.abs(rng.standard_normal(400_000))
        mu = (loss.prime(y_hat, y[:, None]) * y_hat).mean(axis=0)
        found = spectrum(y_hat, y, loss=loss, N=round(400_000 / alpha), mu=mu)
        rows.append([found.bulk_edge[0], found.outlier[0], found.outlier_overlap[0]])
    exact = initial_hessian(alpha, loss)
    expected = [exact.edge, exact.outlier, exact.overlap]
    error = np.std(rows, axis=0) / math.sqrt(20)
    # A hard edge is approached slowly by labels, whose largest t is below the supremum.
    off = abs(np.mean(rows, axis=0) - expected)
    slowly = 0.03 if a > 1.2 else 1e-3 * abs(exact.edge)
    assert np.all(off < 4 * error + [slowly, 1e-4, 1e-4])


@pytest.mark.parametrize("loss", [QuarticLoss(), AmplitudeLoss()], ids=str)
def test_losses_without_an_edge_are_refused_in_words(loss: IntensityLoss) -> None:
    """An unbounded -ell'' has no edge in the limit, and a constant one none that is > 0."""
    with pytest.raises(ValueError, match="must have a finite supremum > 0; that of"):
        initial_hessian(4.0, loss)


def test_revealed_sensings_begin_blindly() -> None:
    """A start that is made from the whole matrix is refused with one that is not there yet."""
    with pytest.raises(ValueError, match="start must be overlap or uniform where sensing is rev"):
        Problem(LOSS, sensing="revealed", start="spectral")
    assert Problem(LOSS, sensing="revealed", start="overlap", start_overlap=0.1).may_reveal
