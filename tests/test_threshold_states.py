"""Claims about threshold states and their thresholds, against other ways to the same numbers."""

import math

import numpy as np
import pytest

from alphasweep.analysis.threshold_states import (
    NoThresholdStateError,
    ThresholdState,
    alpha_bbp_ts,
    threshold_at_bbp,
    threshold_state,
    thresholds,
)
from alphasweep.analysis.thresholds import alpha_bbp_init
from alphasweep.kernels.loss import AmplitudeLoss, Array, IntensityLoss, Loss, QuarticLoss
from tests.losses import Welsch


@pytest.mark.parametrize(("a", "expected"), [(0.01, 4.4361), (1.0, 7.0940)])
def test_known_thresholds(a: float, expected: float) -> None:
    """The two values of the design notes come out to all four of their decimals."""
    assert round(alpha_bbp_ts(a), 4) == expected


def test_known_state() -> None:
    """At alpha = 7, a = 1 chi, s and energy are those of the design notes."""
    state = threshold_state(7.0, 1.0)
    assert round(state.chi, 6) == 0.155689
    assert round(state.s, 6) == 0.280185
    assert round(state.energy, 6) == 0.363082
    assert state.residual < 1e-8


def brute_force(loss: Loss, chi: float, s: float, y: Array, h: Array) -> tuple[Array, Array]:
    """x(h) and V by a search of the whole axis, refined about the best of its points; (y, h)."""
    x = np.linspace(-12.0, 12.0, 1201)
    width = x[1] - x[0]

    def V(x: Array) -> Array:
        return loss.ell(x, y[:, None, None]) + (x - h[:, None]) ** 2 / (2 * chi)

    best = x[np.argmin(V(x[None, None, :]), axis=2)]
    for _ in range(12):
        x = best[:, :, None] + width * np.linspace(-1, 1, 21)
        best = np.take_along_axis(x, np.argmin(V(x), axis=2)[..., None], 2)[..., 0]
        width /= 8
    return best, V(best[..., None])[..., 0]


def equations(state: ThresholdState, nodes: int = 60) -> tuple[float, float, float, float]:
    """(1), (2) and (3) of the module, each 1, and the energy, by Gauss and Legendre."""
    u, w = np.polynomial.legendre.leggauss(nodes)
    z = 9 * ((1 + u) / 2) ** 3
    w = w / 2 * 27 * ((1 + u) / 2) ** 2 * np.exp(-(z**2) / 2) * math.sqrt(2 / math.pi)
    x, V = brute_force(state.loss, state.chi, state.s, z, z)
    p = np.exp(-state.s * V) * w
    P = w[:, None] * p / p.sum(axis=1, keepdims=True)
    curved = state.chi * state.loss.second(x, z[:, None])
    q = -curved / (1 + curved)
    return (
        state.alpha * np.sum(P * (x - z) ** 2) * (state.chi + state.s) / state.chi,
        state.alpha * np.sum(P * q**2),
        state.alpha * np.sum(P * q * (z[:, None] ** 2 - 1)),
        float(np.sum(P * state.loss.ell(x, z[:, None]))),
    )


@pytest.mark.parametrize(
    ("loss", "alpha"),
    [(IntensityLoss(1.0), 7.0), (IntensityLoss(0.3), 5.0), (AmplitudeLoss(), 6.0)],
    ids=str,
)
def test_states_solve_their_equations(loss: Loss, alpha: float) -> None:
    """By a brute-force minimum and other nodes both equations hold, and the energy is that."""
    state = threshold_state(alpha, loss)
    saddle, marginal, _, energy = equations(state)
    assert saddle == pytest.approx(1, abs=1e-6)
    assert marginal == pytest.approx(1, abs=1e-6)
    assert energy == pytest.approx(state.energy, rel=1e-6)


def test_the_outlier_of_the_threshold_is_at_the_edge() -> None:
    """All three equations hold at alpha_BBP_TS."""
    state = threshold_at_bbp(0.3)
    np.testing.assert_allclose(equations(state)[:3], 1, atol=1e-6)
    assert state.alpha == alpha_bbp_ts(0.3)


@pytest.mark.parametrize("a", [1.0, 10.0, 1e3])
def test_the_number_of_nodes_does_not_matter(a: float) -> None:
    """Also where chi > 1 / sup(-ell'') = 1/4, and q is singular at one label."""
    coarse, fine = (threshold_at_bbp(a, step=step) for step in (0.15, 0.08))
    assert (fine.chi > 0.25) == (a > 5)
    assert coarse.alpha == pytest.approx(fine.alpha, rel=1e-6)


def test_the_density_of_threshold_states_begins_at_zero() -> None:
    """They are marginal: the edge of the Riemannian Hessian's bulk is 0, and all lies above."""
    density = threshold_state(7.0, 1.0).density()
    assert density.eigenvalue[0] == pytest.approx(0, abs=1e-3)
    assert density.cumulative[-1] == pytest.approx(1, abs=1e-9)


def test_the_quartic_loss_is_a_limit() -> None:
    """Of the intensity loss, as a grows; only curvature that differs lets an outlier appear."""
    assert alpha_bbp_ts(1e6) == pytest.approx(alpha_bbp_ts(QuarticLoss()), rel=1e-4)
    assert alpha_bbp_init(QuarticLoss()) == math.inf
    assert alpha_bbp_init(AmplitudeLoss()) == alpha_bbp_ts(AmplitudeLoss()) == math.inf


def test_states_of_the_amplitude_loss_in_closed_form() -> None:
    """With ell'' = 2 everywhere, (2) gives 2 chi / (1 + 2 chi) = alpha^(-1/2)."""
    chi = threshold_state(7.0, AmplitudeLoss()).chi
    assert 2 * chi / (1 + 2 * chi) == pytest.approx(7**-0.5, rel=1e-10)


def test_a_table_of_thresholds() -> None:
    """It holds what the functions give, with an error that is that of the nodes."""
    table = thresholds([0.1, 1.0])
    assert table["alpha_bbp_ts"].values.tolist() == [alpha_bbp_ts(0.1), alpha_bbp_ts(1.0)]
    assert table["alpha_bbp_init"].sel(a=1.0) == alpha_bbp_init(1.0)
    assert table["error"].max() < 1e-9
    assert thresholds(1.0).sizes["a"] == 1
    assert alpha_bbp_ts(IntensityLoss(1.0)) == alpha_bbp_ts(1)


def test_what_has_no_solution_says_what_was_tried() -> None:
    """Where energies are zero no state is marginal; wrong input is refused in words."""
    with pytest.raises(NoThresholdStateError, match=r"alpha = 0\.5.*none was found from chi, s ="):
        threshold_state(0.5, 1.0)
    with pytest.raises(NoThresholdStateError, match=r"must not fall with y_hat > 0.*Welsch"):
        threshold_at_bbp(Welsch(0.7))
    with pytest.raises(ValueError, match="alpha must be positive and finite; got -1"):
        threshold_state(-1, 1.0)
    with pytest.raises(ValueError, match="a, the loss's regulariser, must be positive"):
        thresholds([1.0, 0.0])
