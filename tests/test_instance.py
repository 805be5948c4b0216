"""Claims about the problem: streams named by values, signal, labels, starts."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphasweep.kernels.instance import Instance, Signal, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array

seeds = st.integers(0, 2**32 - 1)

# Streams of root_seed 3, N 4, seed 5; start 7.
FIRST_X = [-0.56493562, -0.20273826]
FIRST_SIGNAL = [0.7426425, -1.5482214, 0.51627824, -0.88597363]
FIRST_NULL_LABELS = [0.23342612, 0.71945918]
FIRST_START = [0.81268486, 0.5320836, 0.40775816, 1.7000481]


def matrix(instance: Instance) -> Array:
    """Return X (M, N) as an array."""
    return instance.sensing.forward(np.eye(instance.N, dtype=instance.sensing.dtype))


@settings(deadline=None)
@given(seeds, st.integers(2, 40), st.integers(0, 2**32 - 2), st.sampled_from(["planted", "null"]))
def test_same_name_same_problem(root_seed: int, N: int, seed: int, signal: Signal) -> None:
    """A problem is drawn again to the bit, and another root_seed, seed or N gives another one."""
    one = draw_instance(root_seed, N, seed, M=5, signal=signal)
    two = draw_instance(root_seed, N, seed, M=5, signal=signal)
    assert np.array_equal(matrix(one), matrix(two))
    assert np.array_equal(one.w_star, two.w_star)
    assert np.array_equal(one.y, two.y)
    for other in (
        draw_instance(root_seed + 1, N, seed, M=5, signal=signal),
        draw_instance(root_seed, N, seed + 1, M=5, signal=signal),
    ):
        assert not np.array_equal(matrix(one), matrix(other))
        assert not np.array_equal(one.w_star, other.w_star)
    larger = draw_instance(root_seed, N + 1, seed, M=5, signal=signal)
    assert not np.array_equal(matrix(one), matrix(larger)[:, :N])


def test_streams_are_for_ever() -> None:
    """The first numbers of each stream are those of the first version: old stores can be extended.

    To the roundings of a square root and a division, which may differ between machines.
    """
    planted = draw_instance(3, 4, 5, M=2, precision="float64")
    null = draw_instance(3, 4, 5, M=2, signal="null", precision="float64")
    start = uniform_starts(3, 4, 5, [7], precision="float64")
    np.testing.assert_allclose(matrix(planted)[:, 0], FIRST_X, rtol=1e-6)
    np.testing.assert_allclose(planted.w_star, FIRST_SIGNAL, rtol=1e-6)
    np.testing.assert_allclose(null.y, FIRST_NULL_LABELS, rtol=1e-6)
    np.testing.assert_allclose(start[:, 0], FIRST_START, rtol=1e-6)


@pytest.mark.parametrize("signal", ["planted", "null"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_larger_alpha_extends_the_same_matrix(
    signal: Signal, precision: Literal["float32", "float64"]
) -> None:
    """At one (N, seed) a problem with more samples holds the one with fewer: X, signal, labels.

    X and w_star to the bit. Planted labels to rounding: BLAS may sum a row of a product in another
    order when the product has more rows.
    """
    few = draw_instance(0, 60, 1, M=101, signal=signal, precision=precision)
    many = draw_instance(0, 60, 1, M=350, signal=signal, precision=precision)
    assert np.array_equal(matrix(many)[:101], matrix(few))
    assert np.array_equal(many.w_star, few.w_star)
    rounding = 0 if signal == "null" else 20 * np.finfo(precision).eps
    np.testing.assert_allclose(many.y[:101], few.y, rtol=0, atol=rounding)


def test_both_precisions_see_one_problem() -> None:
    """In float32 problem and starts are those of float64, rounded."""
    single = draw_instance(0, 50, 1, M=100)
    double = draw_instance(0, 50, 1, M=100, precision="float64")
    assert single.sensing.dtype == single.w_star.dtype == single.y.dtype == np.float32
    assert double.sensing.dtype == double.w_star.dtype == double.y.dtype == np.float64
    np.testing.assert_allclose(matrix(single), matrix(double), rtol=2e-7)
    np.testing.assert_allclose(single.w_star, double.w_star, rtol=1e-7)
    np.testing.assert_allclose(single.y, double.y, atol=1e-6)
    starts = uniform_starts(0, 50, 1, range(3)), uniform_starts(0, 50, 1, range(3), precision="f8")
    assert starts[0].dtype == np.float32
    np.testing.assert_allclose(starts[0], starts[1], rtol=1e-7)


def test_a_start_is_the_same_whatever_the_others_are() -> None:
    """Start s has the same bits alone, in any order and in any company; two share nothing."""
    starts = uniform_starts(0, 30, 1, range(10))
    assert np.array_equal(uniform_starts(0, 30, 1, [7])[:, 0], starts[:, 7])
    assert np.array_equal(uniform_starts(0, 30, 1, [9, 2, 7]), starts[:, [9, 2, 7]])
    assert not np.any(starts[:, 0] == starts[:, 1])


@settings(deadline=None)
@given(seeds, st.integers(2, 300), seeds)
def test_norms(root_seed: int, N: int, seed: int) -> None:
    """Signal and starts lie on the sphere of radius sqrt(N), to single precision."""
    w_star = draw_instance(root_seed, N, seed, M=1).w_star
    starts = uniform_starts(root_seed, N, seed, range(2))
    for w in (w_star, *starts.T):
        assert np.square(w.astype(float)).sum() == pytest.approx(N, rel=1e-6)


def test_signal_and_starts_are_uniform_on_the_sphere() -> None:
    """Components, and overlaps of starts and signals, have the moments of the uniform law.

    On the sphere of radius sqrt(N) a component has mean 0, E[w^2] = 1, E[w^4] = 3 N / (N + 2), and
    the overlap of two independent points variance 1/N. To five standard errors: a false alarm in 1
    of 100,000 choices of the seeds.
    """
    N, n = 12, 3000
    starts = uniform_starts(0, N, 0, range(n), precision="float64")
    signals = np.stack([draw_instance(0, N, s, M=1, precision="float64").w_star for s in range(n)])
    fourth = 3 * N / (N + 2)
    for w in (starts.T, signals):
        assert np.all(abs(w.mean(axis=0)) < 5 / np.sqrt(n))
        assert np.all(abs(np.square(w).mean(axis=0) - 1) < 5 * np.sqrt((fourth - 1) / n))
        per_point = (w**4).mean(axis=1)
        assert abs(per_point.mean() - fourth) < 5 * per_point.std() / np.sqrt(n)
    overlap = (starts * signals.T).mean(axis=0)
    assert abs(overlap.mean()) < 5 / np.sqrt(n * N)
    assert abs(N * np.square(overlap).mean() - 1) < 5 * np.sqrt((fourth - 1) / n)


def test_planted_labels() -> None:
    """Labels are abs(X w_star); |y|^2 is chi-squared with M degrees of freedom, to five sigma."""
    instance = draw_instance(0, 200, 0, M=5000, precision="float64")
    np.testing.assert_allclose(instance.y, abs(matrix(instance) @ instance.w_star), atol=1e-13)
    assert abs(np.square(instance.y).sum() - 5000) < 5 * np.sqrt(2 * 5000)


def test_null_labels_know_nothing_of_the_matrix() -> None:
    """The null model has X and w_star of the planted one, and labels abs N(0, 1) of their own.

    |y|^2 is chi-squared, and y^2 uncorrelated with (X w_star)^2, to five standard errors: a false
    alarm in 1 of 800,000 choices of the seed.
    """
    M = 5000
    planted, null = (draw_instance(0, 200, 0, M=M, signal=s) for s in ("planted", "null"))
    assert np.array_equal(matrix(null), matrix(planted))
    assert np.array_equal(null.w_star, planted.w_star)
    assert np.all(null.y >= 0)
    y2, planted2 = np.square(null.y.astype(float)), np.square(planted.y.astype(float))
    assert abs(y2.sum() - M) < 5 * np.sqrt(2 * M)
    assert abs(((y2 - 1) * (planted2 - 1)).sum()) < 5 * 2 * np.sqrt(M)


@pytest.mark.parametrize(("N", "M"), [(1, 5), (0, 5), (5, 0)])
def test_an_impossible_size_is_refused_in_words(N: int, M: int) -> None:
    """N < 2 or M < 1 raises, and the message shows both."""
    with pytest.raises(ValueError, match=f"N >= 2 and M >= 1; got N = {N}, M = {M}"):
        draw_instance(0, N, 0, M=M)


def test_a_name_that_could_be_another_ones_is_refused_in_words() -> None:
    """A seed of more than 32 bits is spelt as two words, a start's of another seed: refused."""
    words = [
        np.random.SeedSequence(0, spawn_key=name).generate_state(4)
        for name in ((64, 5 + 3 * 2**32, 0), (64, 5, 3, 0))
    ]
    assert np.array_equal(*words)
    with pytest.raises(ValueError, match=r"must be below 2\^32; got 12884901893"):
        draw_instance(0, 64, 5 + 3 * 2**32, M=1)
    with pytest.raises(ValueError, match=r"must be below 2\^32; got 4294967296"):
        uniform_starts(0, 64, 5, [2**32])
