"""Claims about the gradient flow: its scheme, its limit, and how starts end."""

from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest

from alphasweep.kernels.descent import Outcome, Trajectory, descend
from alphasweep.kernels.flow import Field, chebyshev, coefficients, flow
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss
from alphasweep.kernels.rest import Rest, rest

LOSS = IntensityLoss(1.0)


def problem(
    N: int = 32,
    alpha: float = 4.0,
    R: int = 6,
    *,
    seed: int = 0,
    precision: Literal["float32", "float64"] = "float64",
) -> tuple[Instance, Array]:
    """Draw a problem and R starts."""
    instance = draw_instance(0, N, seed, M=round(alpha * N), precision=precision)
    return instance, uniform_starts(0, N, seed, range(R), precision=precision)


def run(instance: Instance, starts: Array, *times: float, **settings: Any) -> Trajectory:
    """Follow the flow with this file's usual settings."""
    return flow(instance, starts, loss=LOSS, record=(0.0, *times), **settings)


def end(instance: Instance, w: Array, t: float, **settings: Any) -> Array:
    """Return the point (N,) that one start passes at time t."""
    points: list[Array] = []
    run(instance, w, t, probe=lambda k, w: points.append(w), rest_within=0, **settings)
    return points[-1]


def assert_same(one: Trajectory, two: Trajectory, but: tuple[str, ...] = ()) -> None:
    """Assert that two runs have the same bits, in all but some fields."""
    for field in fields(Trajectory):
        if field.name not in but:
            values = getattr(one, field.name), getattr(two, field.name)
            np.testing.assert_array_equal(*values, err_msg=field.name)


# The scheme


@pytest.mark.parametrize("s", [2, 3, 5, 10, 40])
def test_the_stability_polynomial(s: int) -> None:
    """On dy/dt = lambda y a step is exp(z) to second order, and damps all -0.65 (s^2 - 1) < z < 0.

    The bound is the one that the choice of s keeps: the paper's 2/3 (s^2 - 1)(1 - 2/15 eps).
    """
    c = coefficients(s)

    def polynomial(z: Array) -> Array:
        before, D = np.zeros_like(z), z * c.first
        for mu, nu, k, g in zip(c.mu, c.nu, c.k, c.g, strict=True):
            before, D = D, mu * D + nu * before + z * (k * (1 + D) + g)
        return 1 + D

    z = np.array([-1e-2, -1e-3, 1e-3, 1e-2]) / 1.0
    third = (polynomial(z) - 1 - z - z**2 / 2) / z**3
    assert np.all(np.abs(third) < 1)
    inside = -np.linspace(0.01, 0.65 * (s**2 - 1), 5000)
    assert np.all(np.abs(polynomial(inside)) < 1)


@pytest.mark.parametrize("stages", [2, 5])
def test_the_scheme_converges_with_order_two(stages: int) -> None:
    """Halving the step takes the error at t = 0.5 to a quarter, without the error control."""
    instance, starts = problem(R=1)
    field = Field(instance, LOSS)

    def reach(steps: int) -> Array:
        W = starts
        for _ in range(steps):
            W = chebyshev(field, field.at(W), 0.5 / steps, stages)
            W = W * np.sqrt(32 / np.sum(W**2))
        return W

    exact, steps = reach(4096), (32, 64, 128, 256)
    errors = [np.linalg.norm(reach(n) - exact) for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.1)


def test_tolerance_bounds_the_error() -> None:
    """At t = 5 a start is within 10 tolerances of the flow, rms a component, and nearer with less.

    Errors of steps add up and decay; the factor holds at tolerances from 1e-2 to 1e-5.
    """
    instance, starts = problem(64, R=1)
    exact = end(instance, starts, 5.0, tolerance=1e-9)
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5)
    errors = [
        np.sqrt(np.mean((end(instance, starts, 5.0, tolerance=one) - exact) ** 2))
        for one in tolerances
    ]
    assert np.all(np.array(errors) < 10 * np.array(tolerances))
    assert np.all(np.diff(errors) < 0)


# The limit of small learning rates


def test_plain_steps_tend_to_the_flow() -> None:
    """The distance of the descent to the flow at t = 2 is proportional to learning_rate."""
    instance, starts = problem(R=1)
    exact = end(instance, starts, 2.0, tolerance=1e-9)
    steps, distances = (200, 400, 800, 1600), []
    for n in steps:
        points: list[Array] = []
        descend(
            instance,
            starts,
            loss=LOSS,
            learning_rate=2 / n,
            record=(0, n),
            probe=lambda k, w, to=points: to.append(w),  # type: ignore[misc]
        )
        distances.append(np.linalg.norm(points[-1] - exact))
    order = -np.polyfit(np.log(steps), np.log(distances), 1)[0]
    assert order == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_on_the_sphere_and_downhill(precision: Literal["float32", "float64"]) -> None:
    """At every asked time |w| = sqrt(N) to rounding, and the energy is below that before."""
    instance, starts = problem(precision=precision)
    points: list[Array] = []
    times = np.geomspace(0.01, 50, 60)
    trajectory = run(instance, starts, *times, probe=lambda k, w: points.append(w))
    norm2 = np.square(np.array(points, dtype=float)).sum(axis=1)
    np.testing.assert_allclose(norm2, 32, rtol=20 * float(np.finfo(precision).eps))
    change = np.diff(trajectory.energy, axis=1)
    assert np.all(change[np.isfinite(change)] < 10 * np.finfo(precision).eps)


def test_both_precisions_follow_the_same_flow() -> None:
    """Overlaps in float32 and float64 agree to a few tolerances while a run is young."""
    single, double = (
        run(*problem(64, R=4, precision=p), 1.0, 3.0, rest_within=0).overlap
        for p in ("float32", "float64")
    )
    np.testing.assert_allclose(single, double, atol=5e-3)


# Nothing that is asked changes the path


def test_asked_times_change_no_bit() -> None:
    """A run that ends at t is the beginning of one that ends later, whatever is recorded."""
    instance, starts = problem()
    whole = run(instance, starts, 0.5, 4.0, 9.0, 300.0)
    coarse = run(instance, starts, 300.0)
    series = ("overlap", "energy", "mu", "bulk_edge", "outlier", "outlier_overlap")
    assert_same(whole, coarse, but=(*series, "products"))
    for name in series:
        np.testing.assert_array_equal(getattr(whole, name)[:, -1], getattr(coarse, name)[:, -1])
    short = run(instance, starts, 0.5, 4.0)
    for name in series:
        np.testing.assert_array_equal(getattr(whole, name)[:, :3], getattr(short, name))
    early = whole.recovery_time <= 4.0
    assert np.array_equal(early, short.outcome == Outcome.RECOVERED)
    assert np.array_equal(whole.recovery_time[early], short.recovery_time[early])


def test_a_cell_has_the_same_bits_after_any_other() -> None:
    """What ran before, with other shapes and other stages, leaves nothing behind."""
    instance, starts = problem()
    kept = starts.copy()
    before = run(instance, starts, 1.0, 50.0)
    run(*problem(48, 3.0, 3, seed=1), 5.0, tolerance=1e-5)
    assert_same(before, run(instance, starts, 1.0, 50.0))
    assert np.array_equal(starts, kept)


# How starts end


def test_recovery_is_where_the_overlap_passes() -> None:
    """A run to just before recovery_time is undecided, and its overlap there is recovered_at."""
    instance, starts = problem(alpha=6.0)
    trajectory = run(instance, starts, 200.0)
    found = np.flatnonzero(trajectory.outcome == Outcome.RECOVERED)
    assert found.size >= 2
    for r in found:
        time = trajectory.recovery_time[r]
        before = run(instance, starts, time * (1 - 1e-9))
        assert before.outcome[r] == Outcome.UNDECIDED
        assert abs(before.overlap[r, -1]) == pytest.approx(0.99, abs=1e-4)
        assert abs(trajectory.final_overlap[r]) > 0.99


def test_trapped_is_a_minimum() -> None:
    """A trapped start has a positive lowest eigenvalue, and stays where it is ten times longer."""
    instance, starts = problem(64, 2.0, 8)
    stopped = run(instance, starts, 2000.0)
    trapped = stopped.outcome == Outcome.TRAPPED
    assert trapped.sum() >= 3
    assert np.all(stopped.final_lambda_min[trapped] > 0)
    assert np.all(stopped.final_speed[trapped] < 0.01 * stopped.final_lambda_min[trapped])
    assert np.all(stopped.end_time[trapped] < 2000)
    on = run(instance, starts, 20000.0, rest_within=0)
    assert np.all(on.outcome[trapped] == Outcome.UNDECIDED)
    gone = np.abs(on.final_overlap - stopped.final_overlap)[trapped]
    assert np.all(gone < 0.02)


def test_undecided_starts_know_their_lowest_eigenvalue() -> None:
    """At t = 1 nothing is decided; speed and lowest eigenvalue are those of the point there."""
    instance, starts = problem(R=1)
    points: list[Array] = []
    trajectory = run(instance, starts, 1.0, probe=lambda k, w: points.append(w))
    assert trajectory.outcome[0] == Outcome.UNDECIDED
    seen = rest(instance, points[-1], loss=LOSS)
    assert trajectory.final_speed[0] == pytest.approx(seen.speed, rel=1e-9)
    assert trajectory.final_lambda_min[0] == pytest.approx(seen.lambda_min, rel=1e-9)


def test_starts_that_have_ended_at_once() -> None:
    """The signal is recovered at t = 0 and a point that is not finite has diverged."""
    instance, starts = problem(R=3)
    starts[:, 0], starts[3, 2] = -instance.w_star, np.nan
    trajectory = run(instance, starts, 1.0)
    expected = [Outcome.RECOVERED, Outcome.UNDECIDED, Outcome.DIVERGED]
    assert list(trajectory.outcome) == expected
    assert trajectory.recovery_time[0] == 0
    assert list(trajectory.steps[[0, 2]]) == [0, 0]
    assert np.isnan(trajectory.overlap[[0, 2], 1]).all()


def test_long_runs_cost_little() -> None:
    """To t = 500 the flow takes less than a quarter of the products of plain steps of 0.03."""
    instance, starts = problem(128, 2.9, 8, precision="float32")
    trajectory = run(instance, starts, 500.0, rest_within=0)
    undecided = trajectory.outcome == Outcome.UNDECIDED
    assert undecided.any()
    assert np.all(trajectory.products[undecided] < 2 * 500 / 0.03 / 4)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_fewer_measurements_than_dimensions(alpha: float) -> None:
    """With M < N - 1 starts end as well: on the points of energy 0, or in a minimum beside them."""
    instance, starts = problem(32, alpha, 6)
    stopped = run(instance, starts, 2000.0)
    assert np.all(stopped.outcome == Outcome.TRAPPED)
    flat = 2 * stopped.final_energy < 0.01 * stopped.final_speed
    curved = stopped.final_speed < 0.01 * stopped.final_lambda_min
    assert np.all(flat | curved)
    assert (flat if alpha == 0.5 else curved).sum() >= 4
    on = run(instance, starts, 20000.0, rest_within=0)
    assert np.all(on.outcome == Outcome.UNDECIDED)
    assert np.all(np.abs(on.final_overlap - stopped.final_overlap) < 0.02)


def test_rest_is_looked_at_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trapped start costs little more than one: how it slows down tells when to look."""
    looks = []

    def look(instance: Instance, w: Array, **settings: Any) -> Rest:
        looks.append(w)
        return rest(instance, w, **settings)

    monkeypatch.setattr("alphasweep.kernels.flow.rest", look)
    trajectory = run(*problem(64, 2.0, 16, precision="float32"), 2000.0)
    trapped = trajectory.outcome == Outcome.TRAPPED
    assert trapped.sum() >= 6
    assert trapped.sum() <= len(looks) <= 1.5 * trapped.sum()


def test_what_a_look_saw_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that was seen at a saddle with a mode all but soft ends where it comes to rest."""
    starts, seen = problem(64, 2.0, 16, precision="float32"), 0

    def look(instance: Instance, w: Array, **settings: Any) -> Rest:
        nonlocal seen
        seen += 1
        found = rest(instance, w, **settings)
        return Rest(1e-9, found.speed, found.speed / 1e-9) if seen <= 16 else found

    monkeypatch.setattr("alphasweep.kernels.flow.rest", look)
    trajectory = run(*starts, 4000.0)
    assert seen > 16
    assert np.all(trajectory.outcome != Outcome.UNDECIDED)


def test_both_methods_say_the_same_of_the_end() -> None:
    """Where a run of plain steps ends, its speed, time and products are those of that point."""
    instance, starts = problem()
    plain = descend(instance, starts, loss=LOSS, learning_rate=0.01, record=(0, 50))
    exact = run(instance, starts, 0.5, tolerance=1e-6)
    np.testing.assert_allclose(plain.final_speed, exact.final_speed, rtol=0.1)
    assert np.all(plain.end_time == 0.5)
    assert np.all(exact.end_time == 0.5)
    assert np.all(plain.products == 2 * 51)
    assert np.all(np.isnan(plain.final_lambda_min))
