"""Claims about the sensing matrix and its products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphasweep.kernels.instance import ONE_A_START, SENSINGS, draw_instance
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.sensing import DenseSensing, Sensing

# Rows in one block and in many, uneven last blocks, one start and a number that fills no register,
# products that BLAS packs and such that it does not.
SHAPES = [
    (1, 2, 1),
    (7, 3, 2),
    (97, 64, 1),
    (700, 512, 1),
    (3001, 130, 5),
    (2051, 512, 1),
    (2051, 512, 33),
    (4001, 1024, 3),
    (50, 40_000, 2),
]


def gaussian(M: int, N: int, precision: str = "float64") -> DenseSensing:
    """Draw a sensing matrix of entries N(0, 1/N)."""
    X = np.random.default_rng(0).standard_normal((M, N)) / np.sqrt(N)
    return DenseSensing(X.astype(precision))


@pytest.mark.parametrize(("M", "N", "R"), SHAPES)
def test_round_trip_is_adjoint_of_f_of_forward(M: int, N: int, R: int) -> None:
    """X^T f(X W) by blocks is the product of the whole, on either side of every size limit.

    Each sample is weighed once, y_hat is left behind, and W is not changed. The difference is
    rounding: 10^-13 of the largest entry.
    """
    rng = np.random.default_rng(1)
    sensing, W, y = gaussian(M, N), rng.standard_normal((N, R)), np.abs(rng.standard_normal(M))
    loss = IntensityLoss(1.0)
    terms = loss.label_terms(y, 1.0)
    y_hat, room, out = np.full((M, R), np.nan), np.empty((M, R)), np.full((N, R), np.nan)
    before, weighed = W.copy(), np.zeros(M, dtype=int)

    def weigh(block: Array, rows: slice) -> Array:
        weighed[rows] += 1
        return loss.slope_in_place(block, tuple(t[rows] for t in terms), room[: len(block)])

    sensing.round_trip(W, weigh, y_hat, out)
    assert np.all(weighed == 1)
    assert np.array_equal(W, before)
    expected = sensing.adjoint(loss.prime(sensing.forward(W), y[:, None]))
    np.testing.assert_allclose(y_hat, sensing.forward(W), rtol=0, atol=1e-13 * abs(y_hat).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13 * abs(expected).max())


def test_shapes_cover_one_block_and_many() -> None:
    """The shapes above are weighed in one call and in several, the last one shorter."""
    calls = {}
    for M, N, R in SHAPES:
        lengths: list[int] = []

        def weigh(block: Array, rows: slice, lengths: list[int] = lengths) -> Array:
            lengths.append(rows.stop - rows.start)
            return block

        W = np.ones((N, R))
        gaussian(M, N).round_trip(W, weigh, np.empty((M, R)), np.empty((N, R)))
        assert sum(lengths) == M
        calls[M, N, R] = lengths
    assert any(len(lengths) == 1 for lengths in calls.values())
    assert any(len(lengths) > 1 and lengths[-1] < lengths[0] for lengths in calls.values())


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_precision_is_kept(precision: str) -> None:
    """Products have the precision of the matrix, and `dtype` says so."""
    sensing = gaussian(30, 20, precision)
    W = np.ones((20, 2), dtype=precision)
    assert sensing.dtype == np.dtype(precision)
    assert sensing.forward(W).dtype == sensing.adjoint(sensing.forward(W)).dtype == sensing.dtype


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_adjoint(M: int, N: int, seed: int) -> None:
    """<X w, f> = <w, X^T f> for every w and f; `shape` is (M, N)."""
    rng = np.random.default_rng(seed)
    sensing = gaussian(M, N)
    assert sensing.shape == (M, N)
    w, f = rng.standard_normal((N, 1)), rng.standard_normal((M, 1))
    left, right = sensing.forward(w).T @ f, w.T @ sensing.adjoint(f)
    assert left == pytest.approx(right, rel=1e-12, abs=1e-12)


def test_edges_of_marchenko_and_pastur() -> None:
    """At alpha = 4 the spectrum of X^T X fills [(sqrt(alpha) - 1)^2, (sqrt(alpha) + 1)^2] = [1, 9].

    Its extreme eigenvalues fluctuate around the edges by the Tracy-Widom law (beta = 1: mean -1.21,
    standard deviation 1.27) in units of N^(-2/3), Johnstone's; five standard deviations around the
    mean: a false alarm in less than 1 of 1,000 choices of the seed.
    """
    N, M = 600, 2400
    eigenvalues = np.linalg.svd(draw_instance(0, N, 0, M=M).sensing.forward(np.eye(N, dtype="f4")))
    eigenvalues = np.square(eigenvalues.S.astype(float))
    n, m = np.sqrt(N), np.sqrt(M)
    top_unit = (m + n) * (1 / m + 1 / n) ** (1 / 3) / N
    bottom_unit = (m - n) * (1 / n - 1 / m) ** (1 / 3) / N
    assert max(top_unit, bottom_unit) < 0.06
    assert abs((eigenvalues[0] - 9) / top_unit + 1.21) < 5 * 1.27
    assert abs((1 - eigenvalues[-1]) / bottom_unit + 1.21) < 5 * 1.27


def test_entries_have_variance_one_over_n() -> None:
    """N |X|^2 is chi-squared with M N degrees of freedom and the sum of X is N(0, M), to 5 sigma.

    A false alarm in 1 of 800,000 choices of the seed.
    """
    N, M = 300, 700
    X = draw_instance(0, N, 0, M=M).sensing.forward(np.eye(N, dtype="f4")).astype(float)
    assert abs(N * np.square(X).sum() - M * N) < 5 * np.sqrt(2 * M * N)
    assert abs(X.sum()) < 5 * np.sqrt(M)


# What holds for every sensing that a sweep file can name.


def drawn(kind: str, M: int, N: int, seed: int = 0, precision: str = "float64") -> Sensing:
    """Draw a sensing from a stream of its own."""
    return SENSINGS[kind](np.random.default_rng(seed), M, N, np.dtype(precision))


@pytest.mark.parametrize("kind", SENSINGS)
def test_every_sensing_is_a_linear_map_with_its_adjoint(kind: str) -> None:
    """<X w, f> = <w, X^T f>, and the round trip is forward, weights and adjoint."""
    sensing, rng = drawn(kind, 351, 64), np.random.default_rng(1)
    W, F = rng.standard_normal((64, 3)), rng.standard_normal((351, 3))
    left, right = F.T @ sensing.forward(W), sensing.adjoint(F).T @ W
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-12 * np.abs(left).max())
    np.testing.assert_allclose(
        sensing.forward(W[:, 0]), sensing.forward(W)[:, 0], rtol=0, atol=1e-13 * 10
    )

    y_hat, out = np.empty((351, 3)), np.empty((64, 3))
    sensing.round_trip(W, lambda block, rows: block * F[rows], y_hat, out)
    expected = sensing.adjoint(F * sensing.forward(W))
    np.testing.assert_allclose(y_hat, sensing.forward(W), rtol=0, atol=1e-12)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("kind", SENSINGS)
def test_entries_of_every_sensing(kind: str) -> None:
    """They have mean 0 and variance 1/N to 5 sigma.

    More rows begin with the fewer, but where entries are revealed by what is asked.
    """
    M, N = 700, 300
    X = drawn(kind, M, N).forward(np.eye(N))
    assert abs(X.sum()) < 5 * np.sqrt(M)
    assert abs(N * np.square(X).sum() - M * N) < 5 * np.sqrt(2 * M * N)
    fewer = drawn(kind, 100, N)
    assert np.array_equal(fewer.forward(np.eye(N)), X[:100]) != fewer.remembers
    assert fewer.remembers == (kind in ONE_A_START)
    assert not np.array_equal(drawn(kind, M, N, seed=1).forward(np.eye(N)), X)


@pytest.mark.parametrize("kind", SENSINGS)
def test_both_precisions_see_the_same_sensing(kind: str) -> None:
    """float32 and float64 differ by roundings only."""
    single, double = (drawn(kind, 50, 40, precision=p) for p in ("float32", "float64"))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert single.shape == double.shape == (50, 40)
    w = np.random.default_rng(1).standard_normal((40, 1))
    np.testing.assert_allclose(single.forward(w.astype("f4")), double.forward(w), atol=1e-5)
