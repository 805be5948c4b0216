"""The Riemannian Hessian as an operator, and its lowest eigenpairs by ARPACK."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from kernels.instance import Instance
from kernels.loss import Array, ell_second, multiplier

# A dense solve builds the Hessian (2 M N^2 flops) and reduces it; ARPACK multiplies by X some
# hundred times. tests/benchmarks/hessian.py measures where they cross.
DENSE_UP_TO = 256
_TOLERANCE = 1e-6
_RESTARTS = 100
_KRYLOV = 40


class RiemannianHessian(LinearOperator):  # type: ignore[misc]
    """``P (hess L - mu) P + c w w^T / N``, with P the projector orthogonal to w.

    P alone would put a spurious eigenvalue 0 along w among the lowest; c, the largest ell'' of any
    sample and so above the mean of the spectrum, keeps it out of the way.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    a : float
        Regularisation of the loss.
    """

    def __init__(self, instance: Instance, w: Array, *, a: float) -> None:
        y_hat = instance.sensing.forward(w[:, None])
        self._sensing = instance.sensing
        self._curvature = (instance.N / instance.M) * ell_second(y_hat, instance.y[:, None], a)
        self.mu = float(multiplier(y_hat, instance.y, a)[0])
        self._shift = float(self._curvature.max()) * instance.M / instance.N
        self._unit = w.astype(np.float64)[:, None] / np.linalg.norm(w.astype(np.float64))
        super().__init__(dtype=np.dtype(np.float64), shape=(instance.N, instance.N))

    def _matmat(self, V: Array) -> Array:
        along = self._unit.T @ V
        tangent = V - self._unit @ along
        cast = tangent.astype(self._sensing.dtype)
        pulled = self._sensing.adjoint(self._curvature * self._sensing.forward(cast))
        result = pulled - self.mu * tangent
        result -= self._unit @ (self._unit.T @ result)
        return np.asarray(result + self._shift * self._unit @ along)

    def _matvec(self, v: Array) -> Array:
        return self._matmat(v.reshape(-1, 1))[:, 0]

    def _adjoint(self) -> RiemannianHessian:
        return self


@dataclass(frozen=True)
class Eigenpairs:
    """Lowest eigenpairs of a Riemannian Hessian.

    Attributes
    ----------
    values : (k,)
        Ascending; NaN for pairs that did not converge.
    vectors : (N, k)
        Unit eigenvectors, tangent to the sphere; NaN likewise.
    """

    values: Array
    vectors: Array

    def signal_overlap(self, w_star: Array) -> Array:
        """Squared overlap of each eigenvector with the signal, (k,), in [0, 1]."""
        signal = w_star.astype(np.float64)
        return np.asarray(np.square(signal @ self.vectors) / (signal @ signal))


def lowest_eigenpairs(
    instance: Instance,
    w: Array,
    *,
    a: float,
    modes: int,
    v0: Array | None = None,
    dense_up_to: int = DENSE_UP_TO,
) -> Eigenpairs:
    """Lowest eigenpairs of the Riemannian Hessian at w.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    a : float
        Regularisation of the loss.
    modes : int
        Number of eigenpairs, 1 <= modes < N.
    v0 : (N,), optional
        Where ARPACK starts; the lowest eigenvector of a nearby w saves most of the work. Without
        it, w_star's tangent part shifted by a fixed vector (so that results do not depend on
        ARPACK's own random state).
    dense_up_to : int
        Largest N that is solved densely, in float64.

    Returns
    -------
    Eigenpairs
        Pairs that ARPACK did not converge are NaN; that is data, not an exception.
    """
    hessian = RiemannianHessian(instance, w, a=a)
    if instance.N <= dense_up_to:
        dense = hessian @ np.eye(instance.N)
        values, vectors = eigh(0.5 * (dense + dense.T), subset_by_index=(0, modes - 1))
        return Eigenpairs(values, vectors)
    if v0 is None or not np.isfinite(v0).all():
        v0 = instance.w_star.astype(np.float64) + np.cos(np.arange(instance.N))
    try:
        values, vectors = eigsh(
            hessian,
            k=modes,
            which="SA",
            v0=v0,
            ncv=min(instance.N, max(_KRYLOV, 2 * modes + 1)),
            maxiter=_RESTARTS,
            tol=_TOLERANCE,
        )
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    order = np.argsort(values)
    found = len(order)
    padded = Eigenpairs(np.full(modes, np.nan), np.full((instance.N, modes), np.nan))
    padded.values[:found] = values[order]
    padded.vectors[:, :found] = vectors[:, order]
    return padded
