"""Gradient flow on the sphere: the limit of small learning rates of `kernels.descent`.

    dw/dt = -P grad L(w),   |w| = sqrt(N),   P the projector orthogonal to w

Plain steps are tied to ``learning_rate < 2 / lambda_max`` for ever, although after t ~ 10 a run
moves on the scale of t itself. The stabilised explicit method of Runge, Kutta and Chebyshev of
second order (Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88, 315, 1998) takes steps of
``0.65 s^2 / lambda_max`` for s gradients, with an error estimate that costs nothing.

Steps are chosen by the error alone. What is asked at a time is read from the cubic through w and
dw/dt at both ends of the step, so neither the recorded times nor the end of the run change a bit of
the path: a run that ends earlier is the beginning of a run that ends later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from alphasweep.kernels.descent import Outcome, Probe, Trajectory, nothing_yet
from alphasweep.kernels.hessian import curvatures
from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import Array, Loss, energy, multiplier
from alphasweep.kernels.rest import rest
from alphasweep.kernels.revealed import OutgrownError
from alphasweep.kernels.sensing import Sensing
from alphasweep.kernels.spectrum import spectrum, upper_edge

Indices = npt.NDArray[np.intp]

# Damping of the stability polynomials, and the share of s^2 that is kept clear, as in the paper.
_DAMPING = 2 / 13
_CLEAR = 1.54
# The spectral radius is looked at after so many steps, and after each step that was refused.
_REFRESH, _FIRST_POWERS, _POWERS, _SAFETY = 5, 10, 2, 1.2
# After a look that proved no rest, the next is when time has grown by the first factor; after the
# second what it saw is forgotten: a start may have left a saddle whose softest mode was nearly 0.
_LOOK, _FORGET = 1.25, 2.0
# The first look waits until the way is so much shorter than asked, by how the start slows down:
# then 9 looks of 10 prove rest. At 1 it is 6 of 10, and a run takes no fewer products; at 0.1 it is
# all of them, and 9 % more products (alpha = 2 to 3, N = 64 to 512).
_WAIT = 0.5
# A step shorter than this share of 1 / lambda_max is no step: the start has diverged.
_SHORTEST = 1e-6


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a step refused, or an outcome
def flow(
    instance: Instance,
    starts: Array,
    *,
    loss: Loss,
    record: Sequence[float],
    tolerance: float = 1e-3,
    recovered_at: float = 0.99,
    rest_within: float = 0.01,
    probe: Probe | None = None,
) -> Trajectory:
    """Follow the gradient flow from each start until it ends or the last time.

    Parameters
    ----------
    instance : Instance
    starts : (N, R)
        Columns on the sphere of radius sqrt(N), in the precision of the sensing; not changed.
    loss : Loss
    record : T increasing floats, the first 0
        Physical times at which the series are recorded; the last one ends the run.
    tolerance : float
        Largest estimated error of a step, rms a component, of any start.
    recovered_at : float
        A start has recovered when ``abs(overlap)`` exceeds this.
    rest_within : float
        A start is trapped when the lowest eigenvalue of its Riemannian Hessian is positive and
        ``speed / lambda_min`` is below this (`kernels.rest`); 0 turns it off.
    probe : callable, optional
        Called at each recorded time while the first start is running.

    Notes
    -----
    All starts take a common step, that of the most demanding one, so a start's bits depend on
    those beside it: the batch is always all starts of a cell.
    """
    N, R = starts.shape
    dtype = instance.sensing.dtype
    w_star = instance.w_star.astype(np.float64) / N
    most_stages = max(2, int(np.sqrt(tolerance / (10 * np.finfo(dtype).eps))))
    result = nothing_yet(R, len(record))

    running = np.arange(R)
    field = Field(instance, loss)
    now = field.at(np.array(starts, dtype=dtype, order="C"))
    t, steps, products, next_record = 0.0, 0, 2, 0
    # Of each start: how fast it comes to rest, by the last look, and when that was.
    settling, looked = np.zeros(R), np.full(R, 1 / _LOOK)

    def note(k: int, W: Array, y_hat: Array, which: Indices) -> None:
        mu = multiplier(y_hat, instance.y, loss)
        theory = spectrum(y_hat, instance.y, loss=loss, N=N, mu=mu)
        for series, values in (
            (result.overlap, w_star @ W),
            (result.energy, energy(y_hat, instance.y, loss)),
            (result.mu, mu),
            (result.bulk_edge, theory.bulk_edge),
            (result.outlier, theory.outlier),
            (result.outlier_overlap, theory.outlier_overlap),
        ):
            series[running[which], k] = values[which]
        if probe is not None and which.size and running[which[0]] == 0:
            probe(k, W[:, which[0]].copy())

    def end(which: Indices, outcome: Outcome, at: Point, time: float) -> None:
        ids = running[which]
        result.outcome[ids] = outcome
        result.steps[ids], result.products[ids] = steps, products
        result.end_time[ids] = time
        result.final_overlap[ids] = w_star @ at.W[:, which]
        result.final_energy[ids] = energy(at.y_hat[:, which], instance.y, loss)
        result.final_speed[ids] = _rms(at.F[:, which])

    note(0, now.W, now.y_hat, np.arange(R))
    finite = np.isfinite(_rms(now.F))
    found = finite & (np.abs(w_star @ now.W) > recovered_at)
    end(np.flatnonzero(found), Outcome.RECOVERED, now, 0.0)
    result.recovery_time[found] = 0.0
    end(np.flatnonzero(~finite), Outcome.DIVERGED, now, 0.0)
    next_record = 1
    keep = np.flatnonzero(finite & ~found)
    if len(record) == 1:
        end(keep, Outcome.UNDECIDED, now, 0.0)
        keep = keep[:0]
    running, now = running[keep], now.only(keep)
    if not running.size:
        return result

    V, radius, asked = field.radius(now, now.F, _FIRST_POWERS)
    products += asked
    step, previous, stale = 1 / radius, (0.0, 0.0), 0
    while running.size:
        if stale >= _REFRESH:
            V, radius, asked = field.radius(now, V, _POWERS)
            products, stale = products + asked, 0
        step = min(step, 0.65 * (most_stages**2 - 1) / radius)
        stages = min(most_stages, max(2, int(1 + np.sqrt(1 + _CLEAR * step * radius))))
        try:
            then = field.at(_sphere(chebyshev(field, now, step, stages), N))
        except OutgrownError:
            end(np.arange(running.size), Outcome.UNDECIDED, now, t)
            break
        products += 2 * stages
        error = _rms(0.8 * (now.W - then.W) + 0.4 * step * (now.F + then.F))
        worst = float(error.max()) / tolerance
        if not worst <= 1:
            if step * radius < _SHORTEST:
                gone = ~(error <= tolerance)
                end(np.flatnonzero(gone), Outcome.DIVERGED, now, t)
                keep = np.flatnonzero(~gone)
                running, now, V = running[keep], now.only(keep), V[:, keep]
            step *= max(0.1, 0.8 * worst ** (-1 / 3)) if np.isfinite(worst) else 0.1
            stale = _REFRESH
            continue

        # Accepted: what happened on the way, then what holds at the end.
        steps, stale = steps + 1, stale + 1
        m = _Cubic(w_star @ now.W, w_star @ then.W, w_star @ now.F, w_star @ then.F, step)
        recovery = np.full(running.size, np.inf)
        for r in np.flatnonzero(np.abs(m.w1) > recovered_at):
            recovery[r] = t + step * _crossing(m, int(r), recovered_at)
        cubic = _Cubic(now.W, then.W, now.F, then.F, step)
        while next_record < len(record) and record[next_record] <= t + step:
            W = _sphere(cubic((record[next_record] - t) / step).astype(dtype), N)
            if next_record == len(record) - 1:
                last = field.at(W, instance.sensing.fork())
                y_hat = last.y_hat
            else:
                y_hat = instance.sensing.fork().forward(W)
            products += 1
            note(next_record, W, y_hat, np.flatnonzero(recovery >= record[next_record]))
            next_record += 1
        over = next_record == len(record)
        ended = recovery <= record[-1]
        end(np.flatnonzero(ended), Outcome.RECOVERED, then, t + step)
        result.recovery_time[running[ended]] = recovery[ended]
        if over:
            open_ = np.flatnonzero(~ended)
            end(open_, Outcome.UNDECIDED, last, record[-1])
            for r in open_ if rest_within else ():
                result.final_lambda_min[running[r]] = rest(
                    instance, last.W[:, r], loss=loss
                ).lambda_min
            break
        if rest_within:
            # The rate at which a start slows down tells what a look would, at no cost: at a minimum
            # it becomes the lowest eigenvalue, from above. So few looks prove nothing.
            speed = _rms(then.F)
            rate = np.log(_rms(now.F) / speed) / step
            age = (t + step) / looked[running]
            known = (settling[running] > 0) & (age < _FORGET)
            rate = np.where(known, settling[running], _WAIT * rate)
            near = (speed < rest_within * rate) & (age >= _LOOK)
            for r in np.flatnonzero(near & ~ended):
                seen = rest(instance, then.W[:, r], loss=loss)
                settling[running[r]] = seen.speed / seen.way
                looked[running[r]] = t + step
                if seen.way < rest_within:
                    ended[r] = True
                    end(np.array([r]), Outcome.TRAPPED, then, t + step)
                    result.final_lambda_min[running[r]] = seen.lambda_min
        t += step

        worst = max(worst, 1e-12)
        before, was = previous
        previous = step, worst
        growth = 0.8 * worst ** (-1 / 3)
        if before:
            growth = 0.8 * (step / before) * was ** (1 / 3) * worst ** (-2 / 3)
        step *= min(10.0, max(0.1, growth))
        now = then
        if ended.any():
            keep = np.flatnonzero(~ended)
            running, now, V = running[keep], now.only(keep), V[:, keep]
    return result


def round_trips(N: int, t: float, tolerance: float) -> float:
    """Expect so many evaluations of the gradient, a start, of runs to t or until they end.

    Measured at the alphas that take longest, a = 1, N = 64 to 512, tolerance 1e-4 to 1e-2, for
    both 10 to 20 % above the means: they are the smaller of what is taken until t and of what is
    taken until all starts have ended, 510, 830, 1190 and 1760 at N = 64, 128, 256 and 512.
    """
    return float(min(55 * t**0.55, 600 * (N / 64) ** 0.6) * (tolerance / 1e-3) ** -0.2) + 10


def decided_by(N: int) -> float:
    """Expect 99 % of the runs of flow to have ended by this time, at the alpha that takes longest.

    Measured for a = 1: 260, 610, 660 and 930 at N = 64, 128, 256 and 512.
    """
    return float(400 * (N / 64) ** 0.45)


class Point(NamedTuple):
    """Points W (N, R), their pre-activations y_hat (M, R), their velocities F = dW/dt (N, R)."""

    W: Array
    y_hat: Array
    F: Array

    def only(self, keep: Indices) -> Point:
        """Return the columns `keep`."""
        if len(keep) == self.W.shape[1]:
            return self
        return Point(*(np.take(array, keep, axis=1) for array in self))


class Field:
    """The vector field ``-P grad L``, and its largest rate."""

    def __init__(self, instance: Instance, loss: Loss) -> None:
        self.instance, self.loss = instance, loss
        y = instance.y.astype(instance.sensing.dtype, copy=False)
        self._terms = loss.label_terms(y, -instance.N / instance.M)
        self._each: tuple[Array, ...] = ()
        self._weighted = np.empty((0, 0), y.dtype)

    def at(self, W: Array, sensing: Sensing | None = None) -> Point:
        """Evaluate at W (N, R), which need not be on the sphere: P is that of W's own length.

        A `sensing` is asked instead of the instance's, whose fork it is.
        """
        M, R = self.instance.M, W.shape[1]
        if self._weighted.shape[1] != R:  # equal shapes multiply faster
            self._each = tuple(np.repeat(term, R, axis=1) for term in self._terms)
            self._weighted = np.empty((M, R), W.dtype)
        each, weighted = self._each, self._weighted
        y_hat, F = np.empty((M, R), W.dtype), np.empty_like(W)

        def weigh(block: Array, rows: slice) -> Array:
            here = tuple(term[rows] for term in each)
            return self.loss.slope_in_place(block, here, weighted[: len(block)])

        (sensing or self.instance.sensing).round_trip(W, weigh, y_hat, F)
        F -= W * (_dot(W, F) / _dot(W, W)).astype(W.dtype)
        return Point(W, y_hat, F)

    def radius(self, at: Point, V: Array, times: int) -> tuple[Array, float, int]:
        """Estimate the largest modulus of the Riemannian Hessian's eigenvalues over all starts.

        Returns V after `times` power iterations, the estimate with its margin, and the products
        that it took. A sensing that remembers is not asked: there it is the edge at large N.
        """
        instance = self.instance
        if instance.sensing.remembers:
            return V, self._edges(at) * _SAFETY, 0
        curvature = curvatures(instance, at.y_hat, self.loss).astype(at.W.dtype, copy=False)
        mu = multiplier(at.y_hat, instance.y, self.loss).astype(at.W.dtype)
        scratch, out = np.empty_like(at.y_hat), np.empty_like(at.W)
        length = np.ones(V.shape[1])

        def weigh(block: Array, rows: slice) -> Array:
            return np.asarray(np.multiply(block, curvature[rows], out=scratch[rows]))

        for _ in range(times):
            V = V - at.W * (_dot(at.W, V) / _dot(at.W, at.W)).astype(V.dtype)
            V = V / np.maximum(np.sqrt(_dot(V, V)), np.finfo(V.dtype).tiny).astype(V.dtype)
            instance.sensing.round_trip(V, weigh, np.empty_like(at.y_hat), out)
            out -= mu * V
            V = out - at.W * (_dot(at.W, out) / _dot(at.W, at.W)).astype(V.dtype)
            length = np.sqrt(_dot(V, V))
        largest = max(float(length.max()) * _SAFETY, float(np.finfo(V.dtype).tiny))
        return V, largest, 2 * times

    def _edges(self, at: Point) -> float:
        """Larger distance from 0 of both edges of the Riemannian Hessian's bulk."""
        second = self.loss.second(at.y_hat, self.instance.y[:, None])
        mu = multiplier(at.y_hat, self.instance.y, self.loss)
        highest, lowest = (upper_edge(sign * second, self.instance.N) for sign in (1, -1))
        return float(np.maximum(np.abs(highest - mu), np.abs(lowest + mu)).max())


class Coefficients(NamedTuple):
    """Of the stages 2 ... s of the scheme: ``D_j = mu D_j-1 + nu D_j-2 + h (k F_j-1 + g F_0)``."""

    first: float
    mu: Array
    nu: Array
    k: Array
    g: Array


@lru_cache(maxsize=512)
def coefficients(s: int) -> Coefficients:
    """Coefficients of the scheme with s >= 2 stages (eq. 2.6 to 2.9 of the paper)."""
    w0 = 1 + _DAMPING / s**2
    T, d1, d2 = np.zeros((3, s + 1))
    T[:2], d1[1] = (1, w0), 1
    for j in range(2, s + 1):
        T[j] = 2 * w0 * T[j - 1] - T[j - 2]
        d1[j] = 2 * T[j - 1] + 2 * w0 * d1[j - 1] - d1[j - 2]
        d2[j] = 4 * d1[j - 1] + 2 * w0 * d2[j - 1] - d2[j - 2]
    w1 = d1[s] / d2[s]
    b = np.empty(s + 1)
    b[2:] = d2[2:] / d1[2:] ** 2
    b[:2] = b[2]
    a = 1 - b * T
    k = 2 * w1 * b[2:] / b[1:-1]
    return Coefficients(b[1] * w1, 2 * w0 * b[2:] / b[1:-1], -b[2:] / b[:-2], k, -a[1:-1] * k)


def chebyshev(field: Field, at: Point, step: float, stages: int) -> Array:
    """One step of the scheme; as differences from W, whose rounding grows less with the stages."""
    real = at.W.dtype.type
    c = coefficients(stages)
    before = np.zeros_like(at.W)
    D = real(step * c.first) * at.F
    for mu, nu, k, g in zip(c.mu, c.nu, c.k, c.g, strict=True):
        F = field.at(at.W + D).F
        before, D = D, real(mu) * D + real(nu) * before + real(step * k) * F + real(step * g) * at.F
    return np.asarray(at.W + D)


class _Cubic(NamedTuple):
    """The cubic through values and velocities at both ends of a step (Hermite)."""

    w0: Array
    w1: Array
    f0: Array
    f1: Array
    step: float

    def __call__(self, x: float) -> Array:
        """Value at the share x of the step."""
        rest_ = 1 - x
        return np.asarray(
            rest_**2 * (1 + 2 * x) * self.w0
            + x**2 * (3 - 2 * x) * self.w1
            + self.step * x * rest_ * (rest_ * self.f0 - x * self.f1)
        )


def _crossing(m: _Cubic, r: int, level: float) -> float:
    """Share of the step at which the overlap of start r passes +-level, for one that ends above."""
    one = _Cubic(m.w0[r], m.w1[r], m.f0[r], m.f1[r], m.step)
    sign = np.sign(one.w1)

    def above(x: float) -> float:
        return float(sign * one(x)) - level

    return float(brentq(above, 0.0, 1.0))


def _dot(A: Array, B: Array) -> Array:
    """Columnwise ``A . B``, (R,), in float64."""
    return np.asarray(np.einsum("ir,ir->r", A, B, dtype=np.float64))


def _rms(A: Array) -> Array:
    """Rms of a component of each column, (R,)."""
    return np.asarray(np.sqrt(_dot(A, A) / len(A)))


def _sphere(W: Array, N: int) -> Array:
    """W (N, R) scaled to columns of length sqrt(N); NaN where it overflowed."""
    norm2 = _dot(W, W)
    norm2[np.isinf(norm2)] = np.nan
    return np.asarray(W * np.sqrt(N / norm2).astype(W.dtype))
