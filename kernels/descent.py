"""Spherical gradient descent for many starts on one sensing matrix at once.

    w <- sqrt(N) u/|u|,   u = w - learning_rate * grad L(w),   grad L = (N/M) X^T ell'

Physical time is ``learning_rate * step``; at different N trajectories lie on one another. Starts
share the matrix, so that a step is two matrix-matrix products; a start that has ended leaves the
batch and the others go on. How a start ended is data (`Outcome`), never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import Array, Loss, energy, multiplier
from alphasweep.kernels.revealed import OutgrownError
from alphasweep.kernels.spectrum import spectrum

Probe = Callable[[int, Array], None]
"""``probe(k, w)`` is called with the k-th recorded step and w (N,) of the first start."""


class Outcome(IntEnum):
    """How a start ended."""

    MISSING = 0
    RECOVERED = 1
    TRAPPED = 2
    UNDECIDED = 3
    DIVERGED = 4

    @property
    def advice(self) -> str:
        """What it means, and what to try if it was not wanted."""
        return {
            Outcome.MISSING: "not computed",
            Outcome.RECOVERED: "the overlap passed recovered_at",
            Outcome.TRAPPED: "at rest, signal not found (gd: speed below trapped_below; flow: a "
            "local minimum, lambda_min > 0 and speed / lambda_min < rest_within)",
            Outcome.UNDECIDED: "still moving when the time ran out: raise t_max",
            Outcome.DIVERGED: "non-finite, or (gd) the energy rose for good: lower learning_rate",
        }[self]


@dataclass(frozen=True)
class Trajectory:
    """What R starts did; series are NaN after a start's end.

    Attributes
    ----------
    outcome : (R,), int8
        Values of `Outcome`. A start whose revealed sensing has outgrown its memory is UNDECIDED
        with an `end_time` before the last; of plain steps only its overlap is known there.
    steps, products : (R,), int64
        Steps taken, and products with X or its transpose meanwhile, certificates of rest apart.
    recovery_time : (R,)
        Physical time at which ``abs(overlap)`` passed recovered_at; of plain steps that of the
        first step beyond it; NaN if none.
    end_time : (R,)
        Physical time to which it ran: the end of the step in which it ended, or the last time.
    final_overlap, final_energy : (R,)
        At the end: after the step in which the start ended, or at the last time.
    final_speed : (R,)
        ``|P grad L| / sqrt(N)`` there: rms velocity of a component.
    final_lambda_min : (R,)
        Lowest eigenvalue of the Riemannian Hessian there; NaN where the start recovered or
        diverged, and of plain steps, which do not look.
    overlap, energy, mu : (R, T)
        At what was recorded.
    bulk_edge, outlier, outlier_overlap : (R, T)
        Large-N spectrum of the Riemannian Hessian from the labels (`kernels.spectrum`).
    """

    outcome: np.ndarray
    steps: np.ndarray
    products: np.ndarray
    recovery_time: Array
    end_time: Array
    final_overlap: Array
    final_energy: Array
    final_speed: Array
    final_lambda_min: Array
    overlap: Array
    energy: Array
    mu: Array
    bulk_edge: Array
    outlier: Array
    outlier_overlap: Array


_PER_START = (
    "recovery_time", "end_time", "final_overlap", "final_energy", "final_speed",
    "final_lambda_min",
)  # fmt: skip
_SERIES = ("overlap", "energy", "mu", "bulk_edge", "outlier", "outlier_overlap")


@np.errstate(over="ignore", invalid="ignore")  # overflow is an outcome, diverged
def descend(
    instance: Instance,
    starts: Array,
    *,
    loss: Loss,
    learning_rate: float,
    record: Sequence[int],
    recovered_at: float = 0.99,
    trapped_below: float = 1e-3,
    probe: Probe | None = None,
) -> Trajectory:
    """Descend from each start until it ends or the last recorded step.

    Parameters
    ----------
    instance : Instance
    starts : (N, R)
        Columns on the sphere of radius sqrt(N), in the precision of the sensing; not changed.
    loss : Loss
    learning_rate : float
        Physical time of a step; the descent is unstable above 2 / (largest eigenvalue of hess L).
    record : T increasing integers, the first 0
        Steps at which the series are recorded; the last one ends the run.
    recovered_at : float
        A start has recovered when ``abs(overlap)`` exceeds this.
    trapped_below : float
        A start is trapped when its speed ``|P grad L| / sqrt(N)``, looked at once per unit of
        time, is below this; 0 turns it off.
    probe : callable, optional
        Called at each recorded step while the first start is running.

    Notes
    -----
    A start has diverged when its energy is not finite, or exceeds that of its beginning at two
    looks in a row (or at the end): on the sphere a learning rate too large does not overflow, it
    ends in a cycle of high energy, whose speed can be zero. So this is looked at before
    `trapped_below`. Of 900 recovering runs (a = 1, N = 64 to 512, alpha = 2 to 6) none had
    ever been slower than 1e-3 before, one was slower than 3e-3.
    """
    N, R = starts.shape
    M, recorded = instance.M, {step: k for k, step in enumerate(record)}
    last, look = record[-1], max(1, round(1 / learning_rate))
    dtype = instance.sensing.dtype
    w_star = instance.w_star / dtype.type(N)
    # The product X^T f(X W) is then the displacement -learning_rate * grad L itself.
    terms = loss.label_terms(instance.y.astype(dtype, copy=False), -learning_rate * N / M)
    radius2, ones = float(N), np.ones(N)

    result = nothing_yet(R, len(record))
    running = np.arange(R)
    W = np.array(starts, dtype=dtype, order="C")
    y_hat, weighted, each, displacement = _workspace(terms, W)
    first_energy = np.full(R, np.nan)
    was_above = np.zeros(R, dtype=bool)

    def weigh(block: Array, rows: slice) -> Array:
        here = tuple(term[rows] for term in each)
        return loss.slope_in_place(block, here, weighted[: len(block)])

    for step in range(last + 1):
        try:
            instance.sensing.round_trip(W, weigh, y_hat, displacement)
        except OutgrownError:
            result.outcome[running] = _UNDECIDED
            result.steps[running], result.end_time[running] = step, learning_rate * step
            result.products[running] = 2 * step
            result.final_overlap[running] = w_star @ W
            break
        overlap = w_star @ W
        ended = (np.abs(overlap) > recovered_at) * _RECOVERED

        if step in recorded or step % look == 0:
            now = energy(y_hat, instance.y, loss)
            mu = multiplier(y_hat, instance.y, loss)
            if step == 0:
                first_energy = now
            if step in recorded:
                k = recorded[step]
                theory = spectrum(y_hat, instance.y, loss=loss, N=N, mu=mu)
                for series, values in (
                    (result.overlap, overlap),
                    (result.energy, now),
                    (result.mu, mu),
                    (result.bulk_edge, theory.bulk_edge),
                    (result.outlier, theory.outlier),
                    (result.outlier_overlap, theory.outlier_overlap),
                ):
                    series[running, k] = values
                if probe is not None and running.size and running[0] == 0:
                    probe(k, W[:, 0].copy())
            if step % look == 0 or step == last:
                above = ~(now <= first_energy)
                slow = _speed(W, displacement, mu, learning_rate) < trapped_below
                open_ = ended == _MISSING
                ended[open_ & slow & ~above] = _TRAPPED
                ended[open_ & above & (was_above | (step == last) | ~np.isfinite(now))] = _DIVERGED
                was_above = above
        if step == last:
            ended[ended == _MISSING] = _UNDECIDED

        if ended.any():
            gone, keep = np.flatnonzero(ended), np.flatnonzero(ended == _MISSING)
            which = running[gone]
            result.outcome[which] = ended[gone]
            result.steps[which] = step
            result.final_overlap[which] = overlap[gone]
            result.products[which] = 2 * (step + 1)
            result.end_time[which] = learning_rate * step
            result.final_energy[which] = energy(y_hat[:, gone], instance.y, loss)
            mu = multiplier(y_hat[:, gone], instance.y, loss)
            speed = _speed(W[:, gone], displacement[:, gone], mu, learning_rate)
            result.final_speed[which] = speed
            found = running[ended == _RECOVERED]
            result.recovery_time[found] = learning_rate * step
            if not keep.size:
                break
            running, was_above, first_energy = running[keep], was_above[keep], first_energy[keep]
            W = np.take(W, keep, axis=1)
            stepped = np.take(displacement, keep, axis=1)
            y_hat, weighted, each, displacement = _workspace(terms, W)
            displacement[...] = stepped

        W += displacement
        np.multiply(W, W, out=displacement)
        # In float64, and by BLAS: a sum along columns takes three times as long.
        norm2 = ones @ displacement.astype(np.float64)
        norm2[np.isinf(norm2)] = np.nan  # a step that overflowed ends at no point, not at w = 0
        W *= np.sqrt(radius2 / norm2).astype(dtype)
    return result


_MISSING, _RECOVERED, _TRAPPED, _UNDECIDED, _DIVERGED = (np.int8(o) for o in Outcome)


def _workspace(terms: tuple[Array, ...], W: Array) -> tuple[Array, Array, tuple[Array, ...], Array]:
    """Arrays of a step: pre-activations, weighted slopes, label terms (M, R), displacement (N, R).

    Terms are repeated for every start: equal shapes multiply twice as fast as broadcast ones.
    """
    M, R = len(terms[0]), W.shape[1]
    y_hat, weighted = np.empty((2, M, R), W.dtype)
    each = tuple(np.repeat(term, R, axis=1) for term in terms)
    return y_hat, weighted, each, np.empty_like(W)


def _speed(W: Array, displacement: Array, mu: Array, learning_rate: float) -> Array:
    """``|P grad L| / sqrt(N)`` of each start, (R,): rms velocity of a component."""
    tangent = displacement / -learning_rate - W * mu.astype(W.dtype)
    return np.asarray(np.sqrt(np.square(tangent).mean(axis=0, dtype=np.float64)))


def joined(each: Sequence[Trajectory]) -> Trajectory:
    """Return what all starts of several descents did, those of the first descent first."""
    names = [field.name for field in fields(Trajectory)]
    return Trajectory(**{n: np.concatenate([getattr(one, n) for one in each]) for n in names})


def nothing_yet(R: int, T: int) -> Trajectory:
    """Return what is known of R starts before they run, with T places in each series."""
    starts = {name: np.full(R, np.nan) for name in _PER_START}
    series = {name: np.full((R, T), np.nan) for name in _SERIES}
    return Trajectory(
        outcome=np.zeros(R, np.int8),
        steps=np.zeros(R, np.int64),
        products=np.zeros(R, np.int64),
        **starts,
        **series,
    )
