"""Where a descent begins, by the name that a sweep file calls it.

Each is called as

    kind(root_seed, N, seed, start, *, precision, instance, loss, overlap) -> (N, R)

and may ignore what it does not need. Points lie on the sphere of radius sqrt(N).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from alphasweep.kernels.hessian import DENSE_UP_TO, lowest_eigenpairs
from alphasweep.kernels.instance import Instance, on_sphere, uniform_starts
from alphasweep.kernels.loss import Array, Loss

TRIMMED_AT = 3.0
"""Labels above it do not count for the start "trimmed"."""


def optimal(y: Array, alpha: float) -> Array:
    """Weights ``(y^2 - 1) / (y^2 + sqrt(2 alpha) - 1)`` of samples with labels y.

    Their leading eigenvector sees the signal from the smallest alpha that any weights allow, 1/2
    (Mondelli and Montanari, Found. Comput. Math. 19, 703 (2019), for real signals). Near 1/2 and
    below, where they would diverge, the last part of the denominator is 0.01.
    """
    y2 = np.square(y.astype(np.float64))
    return np.asarray((y2 - 1) / (y2 + max(np.sqrt(2 * alpha) - 1, 0.01)))


def trimmed(y: Array, alpha: float) -> Array:
    """Weights y^2, and 0 above `TRIMMED_AT` (Chen and Candes, Commun. Pure Appl. Math. 70, 822)."""
    y2 = np.square(y.astype(np.float64))
    return np.asarray(np.where(y2 <= TRIMMED_AT**2, y2, 0.0))


WEIGHTS: dict[str, Callable[[Array, float], Array]] = {"spectral": optimal, "trimmed": trimmed}
"""How samples count in the matrix ``X^T diag(weights) X`` whose leading eigenvector is a start.

They are called with the labels and alpha. Its eigenvector is one for all starts of a matrix.
"""


def _uniform(
    root_seed: int, N: int, seed: int, start: Sequence[int], *, precision: str, **_: Any
) -> Array:
    return uniform_starts(root_seed, N, seed, start, precision=precision)


def _at_overlap(
    root_seed: int,
    N: int,
    seed: int,
    start: Sequence[int],
    *,
    precision: str,
    instance: Instance,
    overlap: float,
    **_: Any,
) -> Array:
    """Uniform on the sphere among the points of this overlap with the signal."""
    W = uniform_starts(root_seed, N, seed, start, precision="float64")
    signal = instance.w_star.astype(np.float64)[:, None] / np.sqrt(N)
    W -= signal @ (signal.T @ W)
    W *= np.sqrt((1 - overlap**2) * N) / np.linalg.norm(W, axis=0)
    W += overlap * np.sqrt(N) * signal
    return np.ascontiguousarray(W, dtype=precision)


def _spectral(weights: Callable[[Array, float], Array]) -> Callable[..., Array]:
    def starts(
        root_seed: int,
        N: int,
        seed: int,
        start: Sequence[int],
        *,
        precision: str,
        instance: Instance,
        **_: Any,
    ) -> Array:
        vector = _leading(instance, weights(instance.y, instance.M / N))
        return np.repeat(on_sphere(vector, np.dtype(precision))[:, None], len(start), axis=1)

    return starts


def _leading(instance: Instance, weight: Array) -> Array:
    """Leading eigenvector (N,) of ``X^T diag(weight) X``, by products; NaN if ARPACK gives up."""
    X, N = instance.sensing, instance.N

    def multiply(V: Array) -> Array:
        columns = V.reshape(N, -1).astype(X.dtype)
        return np.asarray(X.adjoint((weight[:, None] * X.forward(columns)).astype(X.dtype)))

    operator = LinearOperator((N, N), matvec=multiply, matmat=multiply, dtype=np.dtype(np.float64))
    if N <= DENSE_UP_TO:
        matrix = operator @ np.eye(N)
        return np.asarray(eigh((matrix + matrix.T) / 2, subset_by_index=(N - 1, N - 1))[1][:, 0])
    try:
        _, vectors = eigsh(operator, k=1, which="LA", v0=np.cos(np.arange(N)), ncv=40, tol=1e-6)
    except ArpackNoConvergence:
        return np.full(N, np.nan)
    return np.asarray(vectors[:, 0])


def _lowest_of_hessian(
    root_seed: int,
    N: int,
    seed: int,
    start: Sequence[int],
    *,
    precision: str,
    instance: Instance,
    loss: Loss,
    **_: Any,
) -> Array:
    """Lowest eigenvector of the Riemannian Hessian at a uniform point, of each start its own."""
    W = uniform_starts(root_seed, N, seed, start, precision=precision)
    found = [lowest_eigenpairs(instance, w, loss=loss, modes=1).vectors[:, 0] for w in W.T]
    return np.stack([on_sphere(vector, np.dtype(precision)) for vector in found], axis=1)


STARTS: dict[str, Callable[..., Array]] = {
    "uniform": _uniform,
    "overlap": _at_overlap,
    "hessian": _lowest_of_hessian,
    **{name: _spectral(weights) for name, weights in WEIGHTS.items()},
}
"""How starts are drawn, by the name in a sweep file."""

BLIND = frozenset({"uniform", "overlap"})
"""The starts that ask nothing of the matrix, so that one that is revealed can begin with them."""
