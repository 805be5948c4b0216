"""The loss of phase retrieval and its derivatives: the only home of its conventions.

One sample with label ``y = abs(x . w_star)`` and pre-activation ``y_hat = x . w`` costs

    ell(y_hat, y) = (y_hat^2 - y^2)^2 / (a + y^2),          a > 0.

The energy ``E = mean_i ell_i`` is intensive and is what is recorded; what is descended is
``L(w) = N E(w)``, so that its gradient has norm O(sqrt N), like ``w`` itself, and its Hessian has
eigenvalues O(1). Source: arXiv:2403.02418, section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


def ell(y_hat: npt.ArrayLike, y: npt.ArrayLike, a: float) -> Array:
    """Loss of each sample, ``(y_hat^2 - y^2)^2 / (a + y^2)``; arguments broadcast."""
    y2 = np.square(y)
    return np.asarray(np.square(np.square(y_hat) - y2) / (a + y2))


def ell_prime(y_hat: npt.ArrayLike, y: npt.ArrayLike, a: float) -> Array:
    """First derivative of `ell` in ``y_hat``; arguments broadcast."""
    y2 = np.square(y)
    return np.asarray(4 * np.asarray(y_hat) * (np.square(y_hat) - y2) / (a + y2))


def ell_second(y_hat: npt.ArrayLike, y: npt.ArrayLike, a: float) -> Array:
    """Second derivative of `ell` in ``y_hat``, never below -4; arguments broadcast."""
    y2 = np.square(y)
    return np.asarray(4 * (3 * np.square(y_hat) - y2) / (a + y2))


def energy(y_hat: Array, y: Array, a: float) -> Array:
    """Energy ``E = mean_i ell_i`` of each start.

    Parameters
    ----------
    y_hat : (M, R)
        Pre-activations ``X w`` of R starts.
    y : (M,)
        Labels, >= 0.
    a : float
        Regularisation of the loss, > 0.

    Returns
    -------
    (R,), float64
    """
    return np.asarray(ell(y_hat, y[:, None], a).mean(axis=0, dtype=np.float64))


def multiplier(y_hat: Array, y: Array, a: float) -> Array:
    """Lagrange multiplier ``mu = w . grad L / N = mean_i ell'_i y_hat_i`` of each start.

    Shapes as in `energy`. The Riemannian Hessian on the sphere is ``P (hess L - mu) P``.
    """
    return np.asarray((ell_prime(y_hat, y[:, None], a) * y_hat).mean(axis=0, dtype=np.float64))


def slope_scale(y: Array, a: float) -> Array:
    """Return ``4 / (a + y^2)``, (M, 1), for `slope_in_place`; multiply constants into it."""
    return np.asarray(4 / (a + np.square(y[:, None])))


def slope_in_place(y_hat: Array, y2: Array, scale: Array, out: Array) -> Array:
    """Write ``scale y_hat (y_hat^2 - y2)`` into `out` without a temporary: `ell_prime`, fast.

    Parameters
    ----------
    y_hat, out : (rows, R)
    y2, scale : (rows, 1) or (rows, R)
        Squared labels and `slope_scale` of these rows.
    """
    np.multiply(y_hat, y_hat, out=out)
    np.subtract(out, y2, out=out)
    np.multiply(out, y_hat, out=out)
    return np.multiply(out, scale, out=out)
