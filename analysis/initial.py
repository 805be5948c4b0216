"""What is known exactly of starts as N -> infinity: their Hessian, and what spectral ones know.

A matrix ``(N/M) X^T diag(t) X`` whose t depend on X through the labels alone has, in the limit, an
edge and perhaps one eigenvalue above it that sees the signal. The equations are those of
`kernels.spectrum`, in s and ``q = t / (s - t)``, with E[.] over the law of a sample instead of M
labels of a run:

    lambda(s) = s/alpha + s E[q],
    edge      s_e:  alpha E[q^2] = 1, or s_e = sup t if the left side is < 1 there (hard edge),
    outlier   s_o > s_e:  alpha E[q (y^2 - 1)] = 1,  if the left side exceeds 1 at s_e,
    its overlap^2 with w_star:  (E[q^2] - 1/alpha) / (E[q^2] - 1/alpha - E[q^2 y^2])  at s_o.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from alphasweep.analysis.thresholds import STEP, half_normal, loss_of
from alphasweep.kernels.loss import Array, Loss
from alphasweep.kernels.starts import TRIMMED_AT, WEIGHTS


@dataclass(frozen=True)
class Extremes:
    """The end of a spectrum: ``edge``; ``outlier`` and its squared ``overlap`` with the signal.

    Without an outlier that is NaN, and the overlap 0.
    """

    edge: float
    outlier: float
    overlap: float


def initial_hessian(alpha: float, loss: Loss | float, *, step: float = STEP) -> Extremes:
    """Lower end of the Riemannian Hessian's spectrum at a uniform start, as N -> infinity.

    Parameters
    ----------
    alpha
        M/N, > 0.
    loss
        Whose -ell'' has a supremum > 0; a bare number is `a` of the intensity loss.
    step
        Distance of the quadrature's nodes in log y and log y_hat.

    Raises
    ------
    ValueError
        If alpha or `a` is not positive and finite, or the loss has no edge in the limit.
    """
    loss = loss_of(loss)
    if not 0 < loss.sup_minus_second < math.inf:
        raise ValueError(f"-ell'' must have a finite supremum > 0; that of {loss} has none")
    z, weight = half_normal(step)
    y, y_hat = z[:, None], z[None, :]
    p = weight[:, None] * weight
    mu = float(np.sum(p * loss.prime(y_hat, y) * y_hat))
    found = _top(-loss.second(y_hat, y), y, p, alpha, loss.sup_minus_second)
    return Extremes(-found.edge - mu, -found.outlier - mu, found.overlap)


def start_overlap(
    kind: str, alpha: float, loss: Loss | float | None = None, *, step: float = STEP
) -> float:
    """Squared overlap of a start with the signal as N -> infinity.

    Parameters
    ----------
    kind
        A name in `kernels.starts.STARTS`, but "overlap", whose overlap is given.
    alpha
        M/N, > 0.
    loss
        Of "hessian", which is the lowest eigenvector at a uniform point.
    step
        As in `initial_hessian`.

    Raises
    ------
    ValueError
        If alpha is not positive and finite, or the kind has no such overlap.
    """
    _check(alpha)
    if kind == "uniform":
        return 0.0
    if kind == "hessian" and loss is not None:
        return initial_hessian(alpha, loss, step=step).overlap
    if kind not in WEIGHTS:
        raise ValueError(
            f"kind must be uniform, hessian (with a loss), {' or '.join(WEIGHTS)}; got {kind}"
        )
    # The weights of "trimmed" jump.
    y, p = _up_to(TRIMMED_AT) if kind == "trimmed" else half_normal(step)
    sup = TRIMMED_AT**2 if kind == "trimmed" else 1.0
    return _top(WEIGHTS[kind](y, alpha), y, p, alpha, sup).overlap


def _up_to(end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of E[f(abs(z))] by Gauss and Legendre, below `end` and beyond, where f = 0.

    The part beyond is one node at which weights are 0.
    """
    u, w = np.polynomial.legendre.leggauss(400)
    y = end * (1 + u) / 2
    p = w * end / 2 * np.exp(-(y**2) / 2) * math.sqrt(2 / math.pi)
    return np.append(y, 2 * end), np.append(p, max(0.0, 1 - p.sum()))


def _check(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be positive and finite; got {alpha}")


def _top(t: Array, y: Array, p: Array, alpha: float, sup: float) -> Extremes:
    """Upper end for a law of (t, y) with probabilities p, any shapes that broadcast."""
    _check(alpha)

    def q(s: float) -> Array:
        return np.asarray(t / (s - t))

    def noise(s: float) -> float:
        return alpha * float(np.sum(p * q(s) ** 2)) - 1

    def signal(s: float) -> float:
        return alpha * float(np.sum(p * q(s) * (y**2 - 1))) - 1

    def position(s: float) -> float:
        return s / alpha + s * float(np.sum(p * q(s)))

    # Both conditions fall in s; nodes stop short of the supremum, so that nothing divides by 0.
    far = 10 * (sup + math.sqrt(alpha * float(np.sum(p * t**2))) + alpha * float(np.sum(p * t**2)))
    far += 10 * alpha * abs(float(np.sum(p * t * (y**2 - 1))))
    lowest = sup * (1 + 1e-12)
    edge = brentq(noise, lowest, far, xtol=1e-13) if noise(lowest) > 0 else lowest
    if signal(edge) <= 0:
        return Extremes(position(edge), math.nan, 0.0)
    at = brentq(signal, edge, far, xtol=1e-13)
    squares = q(at) ** 2
    excess = float(np.sum(p * squares)) - 1 / alpha
    overlap = excess / (excess - float(np.sum(p * squares * y**2)))
    return Extremes(position(edge), position(at), overlap)
