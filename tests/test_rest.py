"""Claims about rest: a minimum is at rest, a saddle is not however slow."""

import numpy as np
import pytest

from alphasweep.kernels.descent import Outcome
from alphasweep.kernels.flow import flow
from alphasweep.kernels.hessian import lowest_eigenpairs
from alphasweep.kernels.instance import Instance, draw_instance
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.rest import rest
from alphasweep.kernels.sensing import DenseSensing

LOSS = IntensityLoss(1.0)


def saddle() -> tuple[Instance, Array]:
    """Return a problem that a reflection maps to itself, and a start (16, 1) that it keeps.

    The signal is odd and the start is even, so the flow never leaves the even points; what is a
    minimum among these is a saddle, with the way down along the signal.
    """
    half = np.random.default_rng(3).standard_normal((80, 16)) / 4
    mirror = np.repeat([1.0, -1.0], 8)
    X = np.concatenate([half, half * mirror])
    w_star, w = np.zeros(16), np.zeros(16)
    w_star[8:], w[:8] = np.random.default_rng(4).standard_normal((2, 8))
    w_star, w = (4 * v / np.linalg.norm(v) for v in (w_star, w))
    return Instance(DenseSensing(X), w_star, np.abs(X @ w_star)), w[:, None]


def test_a_slow_saddle_is_not_at_rest() -> None:
    """At a hundredth of the speed that `descend` calls trapped, no way is proven at a saddle."""
    instance, start = saddle()
    points: list[Array] = []
    times = (0.0, *np.arange(1.0, 20.0))
    run = flow(
        instance,
        start,
        loss=LOSS,
        record=times,
        tolerance=1e-8,
        probe=lambda k, w: points.append(w),
    )
    assert run.outcome[0] == Outcome.UNDECIDED
    seen = min((rest(instance, w, loss=LOSS) for w in points), key=lambda one: one.speed)
    assert seen.speed < 1e-5
    assert seen.lambda_min < -0.1
    assert seen.way == np.inf


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_way_is_the_distance_along_the_softest_direction(precision: str) -> None:
    """Displaced from the signal along the lowest eigenvector by 1e-3, the way back is 1e-3."""
    instance = draw_instance(0, 64, 0, M=400, precision=precision)  # type: ignore[arg-type]
    pairs = lowest_eigenpairs(instance, instance.w_star, loss=LOSS, modes=1)
    w = instance.w_star + 1e-3 * np.sqrt(64) * pairs.vectors[:, 0]
    w *= np.sqrt(64) / np.linalg.norm(w)
    seen = rest(instance, w.astype(precision), loss=LOSS)
    assert seen.lambda_min == pytest.approx(pairs.values[0], rel=0.05)
    assert seen.way == pytest.approx(1e-3, rel=0.05)


def test_the_signal_is_at_rest() -> None:
    """At the signal the speed is zero and the curvature positive, by ARPACK as by a dense solve."""
    for N in (64, 300):
        instance = draw_instance(0, N, 0, M=6 * N, precision="float64")
        seen = rest(instance, instance.w_star, loss=LOSS)
        assert seen.lambda_min > 0
        assert seen.way < 1e-12
        assert rest(instance, instance.w_star, loss=LOSS) == seen


def test_what_is_not_finite_is_not_at_rest() -> None:
    """A point with a NaN is known by nothing, and no way is proven."""
    instance = draw_instance(0, 16, 0, M=64)
    w = instance.w_star.copy()
    w[3] = np.nan
    seen = rest(instance, w, loss=LOSS)
    assert np.isnan(seen.lambda_min)
    assert seen.way == np.inf
