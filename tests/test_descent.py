"""Claims about the descent: its steps, its invariances, and how starts end."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from alphasweep.kernels.descent import Outcome, Trajectory, descend
from alphasweep.kernels.instance import Instance, draw_instance, uniform_starts
from alphasweep.kernels.loss import Array, IntensityLoss, energy, multiplier
from alphasweep.kernels.sensing import DenseSensing
from alphasweep.kernels.spectrum import spectrum

SERIES = ("overlap", "energy", "mu", "bulk_edge", "outlier", "outlier_overlap")
LOSS = IntensityLoss(1.0)
seeds = st.integers(0, 2**32 - 1)


def problem(
    N: int = 64,
    alpha: float = 4.0,
    R: int = 8,
    *,
    seed: int = 0,
    precision: Literal["float32", "float64"] = "float64",
    signal: Literal["planted", "null"] = "planted",
) -> tuple[Instance, Array]:
    """Draw a problem and R starts."""
    instance = draw_instance(0, N, seed, M=round(alpha * N), signal=signal, precision=precision)
    return instance, uniform_starts(0, N, seed, range(R), precision=precision)


def run(
    instance: Instance,
    starts: Array,
    *,
    learning_rate: float = 0.03,
    record: Sequence[int] = (0, 100),
    **settings: Any,
) -> Trajectory:
    """Descend with this file's usual settings."""
    return descend(
        instance, starts, loss=LOSS, learning_rate=learning_rate, record=record, **settings
    )


def outcomes(trajectory: Trajectory) -> list[str]:
    """Name the outcome of each start."""
    return [Outcome(code).name for code in trajectory.outcome]


def gradient(instance: Instance, W: Array) -> Array:
    """Return grad L (N, R), (N/M) X^T ell', from the plain formula."""
    slopes = LOSS.prime(instance.sensing.forward(W), instance.y[:, None])
    return instance.N / instance.M * instance.sensing.adjoint(slopes)


def path(instance: Instance, w: Array, record: Sequence[int], **settings: Any) -> Array:
    """Return the points (T, N) that one start passes at the recorded steps."""
    points: list[Array] = []
    run(instance, w[:, None], record=record, probe=lambda k, w: points.append(w), **settings)
    return np.array(points)


def assert_same(one: Trajectory, two: Trajectory, tolerance: float = 0) -> None:
    """Assert that two runs ended alike and recorded the same, to a tolerance."""
    assert np.array_equal(one.outcome, two.outcome)
    assert np.array_equal(one.steps, two.steps)
    for field in fields(Trajectory):
        values = getattr(one, field.name), getattr(two, field.name)
        np.testing.assert_allclose(*values, rtol=tolerance, atol=tolerance, err_msg=field.name)


# What a step is


def test_a_step_is_the_formula() -> None:
    """One step is w <- sqrt(N) u/|u|, u = w - learning_rate (N/M) X^T ell', to rounding."""
    instance, starts = problem(R=1)
    before, after = path(instance, starts[:, 0], [0, 1])
    assert np.array_equal(before, starts[:, 0])
    u = before - 0.03 * gradient(instance, starts)[:, 0]
    np.testing.assert_allclose(after, u * np.sqrt(64) / np.linalg.norm(u), rtol=1e-13, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(2, 80), st.floats(0.001, 10), st.sampled_from(["float32", "float64"]))
def test_the_norm_is_kept(
    seed: int, N: int, learning_rate: float, precision: Literal["float32", "float64"]
) -> None:
    """|w| = sqrt(N) at every step, to rounding, also where the descent is unstable."""
    instance, starts = problem(N, R=1, seed=seed, precision=precision)
    points = path(instance, starts[:, 0], range(20), learning_rate=learning_rate)
    norm2 = np.square(points.astype(float)).sum(axis=1)
    np.testing.assert_allclose(norm2, N, rtol=20 * np.finfo(precision).eps)


def test_the_descent_converges_with_order_one() -> None:
    """Halving learning_rate halves the distance to the flow at a physical time: Euler's order."""
    instance, starts = problem(R=1)
    steps = (25, 50, 100, 200, 400)
    ends = [path(instance, starts[:, 0], [0, n], learning_rate=0.5 / n)[-1] for n in steps]
    change = [np.linalg.norm(a - b) for a, b in pairwise(ends)]
    order = -np.polyfit(np.log(steps[:-1]), np.log(change), 1)[0]
    assert order == pytest.approx(1, abs=0.1)


def test_energy_never_rises_in_small_steps() -> None:
    """Far below the limit of stability each step lowers the energy of each start."""
    instance, starts = problem()
    trajectory = run(instance, starts, record=range(200), learning_rate=0.005)
    assert np.all(np.diff(trajectory.energy, axis=1) < 0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_is_recorded_belongs_to_the_point(precision: Literal["float32", "float64"]) -> None:
    """Overlap, energy, mu and the spectrum are those of w at the recorded step, not a neighbour's.

    Recomputed in float64 from the point that the probe sees.
    """
    instance, starts = problem(R=1, precision=precision)
    record = (0, 3, 10, 50)
    points = path(instance, starts[:, 0], record)
    trajectory = run(instance, starts, record=record)
    rounding = 1e4 * float(np.finfo(precision).eps)
    assert instance.sensing.dtype == np.dtype(precision)
    for k, w in enumerate(points.astype(float)):
        y_hat = instance.sensing.forward(np.eye(64, dtype=precision)).astype(float) @ w[:, None]
        y, w_star = instance.y.astype(float), instance.w_star.astype(float)
        mu = multiplier(y_hat, y, LOSS)
        theory = spectrum(y_hat, y, loss=LOSS, N=64, mu=mu)
        limits = [getattr(theory, name)[0] for name in ("bulk_edge", "outlier", "outlier_overlap")]
        expected = [w @ w_star / 64, energy(y_hat, y, LOSS)[0], mu[0], *limits]
        recorded = [getattr(trajectory, name)[0, k] for name in SERIES]
        np.testing.assert_allclose(recorded, expected, rtol=rounding, atol=rounding)


# Invariances


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_w_and_minus_w_are_the_same_problem(seed: int) -> None:
    """From -w the run is the mirror image, to the bit: overlap changes sign, nothing else does."""
    instance, starts = problem(N=16, R=3, seed=seed, precision="float32")
    record = range(0, 400, 7)
    one, two = run(instance, starts, record=record), run(instance, -starts, record=record)
    for name in (field.name for field in fields(Trajectory)):
        sign = -1 if name in ("overlap", "final_overlap") else 1
        value, mirrored = getattr(one, name), sign * getattr(two, name)
        assert np.array_equal(value, mirrored, equal_nan=True), name


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_joint_rotations(seed: int) -> None:
    """Rotating X, w_star and w together changes nothing, to rounding."""
    N = 16
    instance, starts = problem(N=N, R=3, seed=seed)
    Q = ortho_group.rvs(N, random_state=seed)
    X = instance.sensing.forward(np.eye(N))
    rotated = Instance(DenseSensing(X @ Q.T), Q @ instance.w_star, instance.y)
    record, never = range(0, 30, 3), {"recovered_at": 1.0, "trapped_below": 0.0}
    one = run(instance, starts, record=record, learning_rate=0.01, **never)
    two = run(rotated, Q @ starts, record=record, learning_rate=0.01, **never)
    for name in ("overlap", "energy", "mu", "bulk_edge"):
        np.testing.assert_allclose(
            getattr(two, name), getattr(one, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


def test_single_precision_follows_double() -> None:
    """Until t = 3 float32 stays within 10^-4 of float64, in overlap and energy."""
    one, two = (
        run(*problem(precision=p), record=range(0, 101, 10)) for p in ("float32", "float64")
    )
    np.testing.assert_allclose(one.overlap, two.overlap, atol=1e-4)
    np.testing.assert_allclose(one.energy, two.energy, atol=1e-4)


# A start and its neighbours


def test_the_same_call_gives_the_same_bits() -> None:
    """A run repeated is equal to the bit, and `starts` is not changed."""
    instance, starts = problem(precision="float32")
    before = starts.copy()
    one, two = (run(instance, starts, record=range(0, 1200, 40)) for _ in range(2))
    assert_same(one, two)
    assert np.array_equal(starts, before)


@pytest.mark.parametrize("learning_rate", [0.03, 0.1])
def test_a_start_does_not_depend_on_its_company(learning_rate: float) -> None:
    """Alone, in another order or in a subset a start runs as in the batch, whoever ends when.

    Not to the bit, because BLAS sums in an order that depends on the number of columns and on a
    column's place, and these roundings grow along the run: to 10^-9 in float64. At learning rate
    0.1 three of the eight diverge while four recover and one goes on.
    """
    instance, starts = problem()
    settings = {"record": range(0, 1200, 8), "learning_rate": learning_rate}
    batch = run(instance, starts, **settings)
    assert len(set(batch.steps)) > 4
    assert ("DIVERGED" in outcomes(batch)) == (learning_rate == 0.1)
    assert outcomes(batch).count("RECOVERED") >= 4
    for chosen in ([0], [2], [3], [7], [5, 1, 3], [7, 6, 5, 4, 3, 2, 1, 0]):
        part = Trajectory(*(getattr(batch, field.name)[chosen] for field in fields(Trajectory)))
        assert_same(run(instance, starts[:, chosen], **settings), part, 1e-9)


def test_what_was_seen_of_a_start_stays_its_own() -> None:
    """The second is above its first energy at two looks in a row, between which the first ends."""
    instance = draw_instance(5, 9, 2, M=22, precision="float64")
    starts = uniform_starts(5, 9, 2, [3, 11, 1], precision="float64")
    batch = run(instance, starts, record=(0, 600), recovered_at=0.95)
    assert outcomes(batch)[:2] == ["RECOVERED", "DIVERGED"]
    look = round(1 / 0.03)
    assert look < batch.steps[0] < batch.steps[1] == 2 * look
    for r in range(3):
        assert (
            run(instance, starts[:, [r]], record=(0, 600), recovered_at=0.95).steps
            == batch.steps[[r]]
        )


def test_a_start_that_is_not_finite_leaves_its_neighbours_alone() -> None:
    """A column of NaN is diverged at the first look; the others run as they do without it."""
    instance, starts = problem()
    record = range(0, 400, 8)
    without = run(instance, np.delete(starts, 3, axis=1), record=record)
    starts[:, 3] = np.nan
    batch = run(instance, starts, record=record)
    assert outcomes(batch)[3] == "DIVERGED"
    assert batch.steps[3] == 0
    others = [0, 1, 2, 4, 5, 6, 7]
    part = Trajectory(*(getattr(batch, field.name)[others] for field in fields(Trajectory)))
    assert_same(without, part, 1e-9)


# How starts end


def test_the_signal_itself_is_recovered_at_once() -> None:
    """From w_star and from -w_star: recovered at step 0, with energy and mu zero."""
    instance, _ = problem()
    starts = np.stack([instance.w_star, -instance.w_star], axis=1)
    trajectory = run(instance, starts)
    assert outcomes(trajectory) == ["RECOVERED", "RECOVERED"]
    assert np.array_equal(trajectory.steps, [0, 0])
    assert np.array_equal(trajectory.recovery_time, [0, 0])
    np.testing.assert_allclose(trajectory.final_overlap, [1, -1], rtol=1e-14)
    np.testing.assert_allclose(trajectory.final_energy, 0, atol=1e-28)
    np.testing.assert_allclose(trajectory.mu[:, 0], 0, atol=1e-14)


def test_recovery_time_is_the_first_passage() -> None:
    """It is the time of the first step with abs(overlap) > recovered_at, and NaN if none."""
    instance, starts = problem()
    trajectory = run(instance, starts, record=range(1200), recovered_at=0.95)
    recovered = trajectory.outcome == Outcome.RECOVERED
    assert 0 < recovered.sum() < 8
    assert np.all(np.isnan(trajectory.recovery_time[~recovered]))
    signs = set()
    for r in np.flatnonzero(recovered):
        step = trajectory.steps[r]
        assert trajectory.recovery_time[r] == 0.03 * step
        assert np.all(abs(trajectory.overlap[r, :step]) <= 0.95)
        assert abs(trajectory.overlap[r, step]) > 0.95
        assert trajectory.final_overlap[r] == trajectory.overlap[r, step]
        assert trajectory.final_energy[r] == pytest.approx(trajectory.energy[r, step], rel=1e-14)
        signs.add(np.sign(trajectory.final_overlap[r]))
    assert signs == {-1, 1}


def test_series_are_nan_after_the_end_and_only_there() -> None:
    """Overlap, energy, mu and edge are finite up to a start's last step, and NaN after it."""
    instance, starts = problem()
    record = np.arange(0, 1300, 10)
    trajectory = run(instance, starts, record=record.tolist(), learning_rate=0.06)
    assert len(set(outcomes(trajectory))) > 1
    alive = record[None, :] <= trajectory.steps[:, None]
    for name in ("overlap", "energy", "mu", "bulk_edge"):
        assert np.array_equal(np.isfinite(getattr(trajectory, name)), alive), name
    for name in ("outlier", "outlier_overlap"):
        assert np.all(np.isnan(getattr(trajectory, name)[~alive])), name


def test_a_coarse_record_holds_the_same_numbers() -> None:
    """What is recorded does not depend on when else something is, to the bit."""
    instance, starts = problem(precision="float32")
    fine = run(instance, starts, record=range(601))
    coarse_record = [0, 1, 5, 33, 34, 200, 600]
    coarse = run(instance, starts, record=coarse_record)
    for name in SERIES:
        expected = getattr(fine, name)[:, coarse_record]
        assert np.array_equal(getattr(coarse, name), expected, equal_nan=True), name
    assert np.array_equal(coarse.steps, fine.steps)


def test_trapped_is_slow_at_a_look() -> None:
    """A trapped start's speed |P grad L|/sqrt(N) is below 10^-3, and was not a unit of time before.

    The energy fell on the way and the signal was not found.
    """
    instance, starts = problem(alpha=2.0)
    trajectory = run(instance, starts, record=(0, 1332))
    assert outcomes(trajectory).count("TRAPPED") >= 4
    for r in np.flatnonzero(trajectory.outcome == Outcome.TRAPPED)[:3]:
        end = int(trajectory.steps[r])
        assert end % 33 == 0  # looks are a unit of time, 33 steps, apart
        points = path(instance, starts[:, r], [0, end - 33, end, 1332]).T
        assert points.shape[1] == 3
        g = gradient(instance, points)
        speed = np.linalg.norm(g - points * (g * points).sum(axis=0) / 64, axis=0) / 8
        assert speed[2] < 1e-3 <= speed[1]
        assert abs(trajectory.final_overlap[r]) < 0.99
        assert trajectory.final_energy[r] < trajectory.energy[r, 0]


def test_trapped_below_zero_is_never() -> None:
    """With trapped_below = 0 the same starts are undecided, at the last step."""
    instance, starts = problem(alpha=2.0)
    trajectory = run(instance, starts, record=(0, 1332), trapped_below=0.0)
    assert set(outcomes(trajectory)) == {"UNDECIDED"}
    assert np.all(trajectory.steps == 1332)


def test_undecided_is_still_moving_when_time_runs_out() -> None:
    """A short run leaves starts undecided at its last step, with everything recorded."""
    instance, starts = problem()
    trajectory = run(instance, starts, record=(0, 5, 20))
    assert set(outcomes(trajectory)) == {"UNDECIDED"}
    assert np.all(trajectory.steps == 20)
    assert np.array_equal(trajectory.final_overlap, trajectory.overlap[:, -1])
    np.testing.assert_allclose(trajectory.final_energy, trajectory.energy[:, -1], rtol=1e-14)
    assert np.all(np.isnan(trajectory.recovery_time))


@pytest.mark.parametrize("learning_rate", [0.3, 10.0, 1e6])
def test_too_large_a_step_diverges(learning_rate: float) -> None:
    """Beyond the limit of stability the energy ends above its beginning, at finite values."""
    instance, starts = problem(precision="float32")
    trajectory = run(instance, starts, record=range(50), learning_rate=learning_rate)
    assert set(outcomes(trajectory)) == {"DIVERGED"}
    assert np.all(trajectory.final_energy > trajectory.energy[:, 0])
    assert "lower learning_rate" in Outcome.DIVERGED.advice


@pytest.mark.parametrize("learning_rate", [1e20, 1e30, 1e38])
def test_overflow_diverges(learning_rate: float) -> None:
    """A step beyond the range of float32 is diverged too, with no warning, not trapped at w = 0."""
    instance, starts = problem(precision="float32")
    trajectory = run(instance, starts, record=range(50), learning_rate=learning_rate)
    assert set(outcomes(trajectory)) == {"DIVERGED"}
    assert np.all(np.isnan(trajectory.final_energy))


def test_a_cycle_of_high_energy_is_not_trapped() -> None:
    """A descent too fast can stand still at a high energy: diverged, although it does not move.

    With one sample, N = 2, the first step leads straight to w along x, a fixed point. (So close to
    the signal chance brings a start in two dimensions that recovery has to be out of reach.)
    """
    instance, starts = problem(N=2, alpha=0.5, R=4)
    settings = {"learning_rate": 1e6, "recovered_at": 2.0}
    trajectory = run(instance, starts, record=range(10), **settings)
    np.testing.assert_allclose(trajectory.energy[:, 1], trajectory.energy[:, 2], rtol=1e-3)
    assert np.all(trajectory.energy[:, 1] > trajectory.energy[:, 0])
    assert set(outcomes(trajectory)) == {"DIVERGED"}


def test_one_look_above_is_not_divergence() -> None:
    """A start whose energy is above its beginning at one look alone goes on, and can recover."""
    instance, starts = problem(N=4, R=16, seed=2)
    trajectory = run(instance, starts, record=range(200), learning_rate=0.5)
    looks = trajectory.energy[:, ::2]  # a unit of time apart
    assert looks[11, 1] > looks[11, 0]
    assert outcomes(trajectory)[11] == "RECOVERED"


def test_the_null_model_stays_at_zero_overlap() -> None:
    """Without a signal in the labels m stays of order 1/sqrt(N) for the whole run.

    w_star is independent of everything else, so N m^2 is at any time distributed as for a random
    point, of mean 1: abs(m) sqrt(N) < 6 for 128 starts at 9 times (a false alarm in less than 1 of
    100,000 choices of the seeds). The mean of N m^2 lies in [0.1, 4]; even if the 16 starts of a
    matrix ended at one point, 8 matrices would give a false alarm in 1 of 100 choices.
    """
    m2 = []
    for seed in range(8):
        instance, starts = problem(N=256, R=16, seed=seed, precision="float32", signal="null")
        trajectory = run(instance, starts, record=range(0, 400, 49))
        assert set(outcomes(trajectory)) <= {"UNDECIDED", "TRAPPED"}
        assert np.all(trajectory.energy[:, -1] < 0.5 * trajectory.energy[:, 0])
        m2.append(256 * np.square(trajectory.overlap))
    assert np.max(m2) < 36
    mean = np.mean(m2, axis=(0, 1))
    assert np.all((mean > 0.1) & (mean < 4))
