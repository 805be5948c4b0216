"""Edge, outlier and outlier overlap of the Hessian at large N, from the labels alone.

With ``t_i = -ell''_i`` the lowest eigenvalues of ``hess L = (N/M) X^T diag(ell'') X`` are minus
the highest of ``(N/M) X^T diag(t) X``. While w has no overlap with the signal, X is independent of
t but for the direction w_star, and the deterministic equivalents of arXiv:2403.02418 apply. They
are written here in ``s = 1/gamma`` and ``q_i = t_i / (s - t_i)``, E[.] the mean over the M samples:

    lambda(s) = s/alpha + s E[q],
    bulk edge     s_e:  alpha E[q^2] = 1,
    outlier       s_o > s_e:  alpha E[q (y^2 - 1)] = 1,  if the left side exceeds 1 at s_e,
    its overlap^2 with w_star:  (E[q^2] - 1/alpha) / (E[q^2] - 1/alpha - E[q^2 y^2])  at s_o.

With the labels of a run the measure is the empirical one, so s lies above the largest t that
occurs and the edge always solves its equation. (In the exact law at large a the density of t
vanishes at its supremum and s_e can stick there, the hard edge: see analysis.thresholds. At
N = 1024, a = 10 the empirical edge is within 0.02 of the lowest bulk eigenvalue, and imposing
s >= 4 is off by 0.3.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alphasweep.kernels.loss import Array, Loss

_ITERATIONS = 60
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Spectrum:
    """Lower end of the large-N spectrum of ``hess L - mu`` for R starts; all (R,), float64.

    Attributes
    ----------
    bulk_edge : lower edge of the bulk.
    outlier : the eigenvalue below the bulk that points to the signal; NaN where there is none.
    outlier_overlap : squared overlap of its eigenvector with w_star; NaN where there is none.
    """

    bulk_edge: Array
    outlier: Array
    outlier_overlap: Array


def spectrum(y_hat: Array, y: Array, *, loss: Loss, N: int, mu: Array) -> Spectrum:
    """Large-N edge and outlier of the Riemannian Hessian at the given labels.

    Parameters
    ----------
    y_hat : (M, R)
        Pre-activations of R starts.
    y : (M,)
        Labels.
    loss : Loss
    N : int
        Dimension; alpha = M/N.
    mu : (R,)
        Lagrange multipliers, subtracted from edge and outlier.

    Notes
    -----
    Exact in the limit N -> infinity while ``w . w_star = o(N)``; it is evaluated at any overlap,
    and means nothing once the overlap is of order one. With labels of the null model, outlier and
    overlap are those that a planted problem with the same law of labels would have: the null
    Hessian has no such eigenvalue.
    """
    y = y.astype(np.float64)
    y2 = np.square(y)
    t = -loss.second(y_hat.astype(np.float64), y[:, None])
    M, R = t.shape
    inverse_alpha = N / M

    def position(s: Array, q: Array) -> Array:
        return np.asarray(-(s * (inverse_alpha + q.mean(axis=0))) - mu)

    s_edge = _edge(t, inverse_alpha)
    q = t / (s_edge - t)
    bulk_edge = position(s_edge, q)

    signal = y2 - 1
    exists = (signal @ q) / N > 1
    outlier = np.full(R, np.nan)
    overlap = np.full(R, np.nan)
    if exists.any():
        t, mu = t[:, exists], mu[exists]
        below = s_edge[exists]

        def condition(s: Array) -> tuple[Array, Array]:
            # 1/S is nearly linear in s; where S <= 0 the root is below s.
            q = t / (s - t)
            S = (signal @ q) / N
            slope = -(signal @ (q * (q + 1))) / (N * s)
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.where(S > 0, 1 / S - 1, np.inf)
                return value, -slope / np.square(S)

        s_outlier = increasing_root(condition, below, 1.2 * below)
        q = t / (s_outlier - t)
        q2 = np.square(q)
        outlier[exists] = position(s_outlier, q)
        excess = q2.mean(axis=0) - inverse_alpha
        overlap[exists] = excess / (excess - (y2 @ q2) / M)
    return Spectrum(bulk_edge, outlier, overlap)


def upper_edge(t: Array, N: int) -> Array:
    """Largest eigenvalue of ``(N/M) X^T diag(t) X`` at large N, for t (M, R) independent of X.

    Returns
    -------
    (R,), float64
        lambda(s_e), see above; of ``hess L`` with ``t = ell''``.
    """
    t = t.astype(np.float64)
    s = _edge(t, N / len(t))
    return np.asarray(s * (N / len(t) + (t / (s - t)).mean(axis=0)))


def _edge(t: Array, inverse_alpha: float) -> Array:
    """Position s_e (R,) of the upper edge for t (M, R)."""
    M = len(t)

    def edge(s: Array) -> tuple[Array, Array]:
        # E[q^2]^(-1/2) is nearly linear in s, so Newton needs a handful of steps.
        q = t / (s - t)
        second = np.einsum("mr,mr->r", q, q) / M
        third = np.einsum("mr,mr,mr->r", q, q, q) / M
        value = second**-0.5 - inverse_alpha**-0.5
        return value, second**-1.5 * (second + third) / s

    top = np.maximum(t.max(axis=0), 0.0)
    scale = np.sqrt(np.square(t).mean(axis=0))
    floor = top + 1e-12 * scale
    guess = top + inverse_alpha**-0.5 * scale
    return increasing_root(edge, floor, guess)


def increasing_root(f: Callable[[Array], tuple[Array, Array]], lower: Array, guess: Array) -> Array:
    """Roots (R,) above `lower` of R functions that rise through zero: Newton inside a bracket.

    `f` gives values and slopes. A start whose root is found, or whose labels are not finite, stays
    where it is while others iterate: its root does not depend on them.
    """
    low, high = lower.copy(), np.full_like(lower, np.inf)
    s = np.maximum(guess, lower)
    moving = np.ones(len(s), dtype=bool)
    for _ in range(_ITERATIONS):
        value, slope = f(s)
        low = np.where(value <= 0, s, low)
        high = np.where(value > 0, s, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = s - value / slope
        middle = np.where(np.isinf(high), 2 * s, 0.5 * (low + high))
        proposal = np.where((newton >= low) & (newton <= high), newton, middle)
        step = np.where(moving, proposal - s, 0)
        s = s + step
        moving = np.abs(step) > _TOLERANCE * s
        if not moving.any():
            break
    return s
