"""Claims about the thresholds of the N -> infinity theory."""

import math
import warnings

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import erfcx

from alphasweep.analysis.thresholds import alpha_bbp_init, too_large
from alphasweep.kernels.descent import Outcome, descend
from alphasweep.kernels.loss import IntensityLoss
from alphasweep.kernels.problem import Problem
from alphasweep.kernels.rates import stable_rate


@pytest.mark.parametrize(("a", "expected"), [(0.01, 2.8508), (1.0, 1.1349)])
def test_known_values(a: float, expected: float) -> None:
    """The two values of the design notes come out to all four of their decimals."""
    assert round(alpha_bbp_init(a), 4) == expected


@pytest.mark.parametrize("a", [1e-4, 1e-2, 1.0, 3.0, 100.0])
def test_the_number_of_nodes_does_not_matter(a: float) -> None:
    """With half the distance between nodes, ten digits stay; with a coarse one they do not."""
    fine = alpha_bbp_init(a, step=0.05)
    assert alpha_bbp_init(a) == pytest.approx(fine, rel=1e-10)
    assert alpha_bbp_init(a, step=0.4) != pytest.approx(fine, rel=1e-10)


@pytest.mark.parametrize("a", [3.0, 10.0, 100.0])
def test_hard_edge_has_a_closed_form(a: float) -> None:
    """At gamma = 1/4, q + 1 = (a + y^2) / (a + 3 y_hat^2), so E[q (y^2 - 1)] is an erfcx."""
    b = math.sqrt(a / 3)
    mean_inverse = math.sqrt(math.pi / 2) * erfcx(b / math.sqrt(2)) / b / 3
    assert alpha_bbp_init(a) == pytest.approx(1 / (2 * mean_inverse), rel=1e-10)


@pytest.mark.parametrize("a", [0.01, 0.3, 1.0])
def test_soft_edge_against_another_quadrature(a: float) -> None:
    """Edge and outlier conditions, solved in turn by other nodes, give the same alpha."""
    s, w = np.polynomial.legendre.leggauss(400)
    s = (1 + s) / 2
    z = 10 * s**3
    w = 15 * w * s**2 * np.exp(-(z**2) / 2) * math.sqrt(2 / math.pi)
    t = -IntensityLoss(a).second(z[None, :], z[:, None])

    def mean(f: np.ndarray) -> float:
        return float(w @ f @ w)

    def q(gamma: float) -> np.ndarray:
        return t * gamma / (1 - t * gamma)

    def excess(alpha: float) -> float:
        def edge(gamma: float) -> float:
            return alpha * mean(q(gamma) ** 2) - 1

        gamma = brentq(edge, 1e-6, 0.25, xtol=1e-14)
        return alpha * mean(q(gamma) * (z[:, None] ** 2 - 1)) - 1

    assert alpha_bbp_init(a) == pytest.approx(brentq(excess, 1.1, 5.0), rel=1e-9)


def test_limits_of_small_and_large_a() -> None:
    """alpha_bbp_init tends to 3 for a -> 0, and to (a + 3) / 2 for a -> infinity."""
    assert alpha_bbp_init(1e-8) == pytest.approx(3, abs=1e-4)
    assert alpha_bbp_init(1e4) == pytest.approx((1e4 + 3) / 2, rel=1e-6)


def test_continuous_with_its_minimum_where_the_edge_turns_hard() -> None:
    """alpha_bbp_init falls with a up to the hard edge's onset at a = 1.1, then rises, unbroken."""
    a = np.geomspace(1e-4, 100, 121)
    alpha = np.array([alpha_bbp_init(value) for value in a])
    slope = np.diff(np.log(alpha)) / np.diff(np.log(a))
    assert np.all(np.abs(slope) < 1)
    assert np.all(slope[a[1:] < 1.1] < 0)
    assert np.all(slope[a[:-1] > 1.11] > 0)


def test_no_warning_leaks() -> None:
    """The extremes of a are computed without an overflow or a division by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a in (1e-4, 1e-2, 1.0, 100.0):
            assert alpha_bbp_init(a) > 0


@pytest.mark.parametrize("a", [0.0, -1.0, math.nan, math.inf])
def test_wrong_a_is_refused_in_words(a: float) -> None:
    """A regulariser that is not positive and finite is refused, and the message shows it."""
    with pytest.raises(ValueError, match=f"must be positive and finite; got a = {a}"):
        alpha_bbp_init(a)


def test_plain_steps_are_stable_at_the_rate_that_is_told_and_not_at_four_times_it() -> None:
    """At a = 0.1 a rate of 0.03 lets nearly all starts diverge; 2 / lambda_max lets none.

    Of 64 starts at N = 64, alpha = 2: 0, 0.12, 0.70, 1 diverge at 1, 2, 4, 8 times that rate.
    Streams are fixed.
    """
    problem = Problem(IntensityLoss(0.1))
    instance = problem.instance(0, 64, 0, M=128)
    starts = problem.starts(0, 64, 0, range(16), instance=instance)
    settings = {"loss": "intensity", "a": 0.1, "sensing": "gaussian", "start": "uniform"}
    rate = stable_rate(problem.loss, 2.0, 64)
    shares = []
    for factor in (1, 4):
        step = factor * rate
        run = descend(
            instance, starts, loss=problem.loss, learning_rate=step, record=[0, round(4 / step)]
        )
        shares.append(np.mean(run.outcome == Outcome.DIVERGED))
    assert shares[0] == 0
    assert shares[1] > 0.25
    assert stable_rate(problem.loss, 2.0, 512) < rate
    assert stable_rate(IntensityLoss(1.0), 2.0, 64) > 3 * rate
    settings |= {"learning_rate": 0.03}
    told = too_large(settings, N=64, alpha=2.0)
    assert rate / 4 < float(told.split("too large: ")[1].split()[0]) <= rate / 2
    assert told.endswith(f"is {rate:.2g} at N = 64, alpha = 2")
    unknown = too_large(settings | {"start": "elsewhere"}, N=64, alpha=2.0)
    assert unknown == "learning_rate = 0.03 is too large: lower it"
