"""The Riemannian Hessian as an operator, and its lowest eigenpairs by ARPACK."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import Array, Loss, multiplier
from alphasweep.kernels.revealed import OutgrownError

# A dense solve builds the Hessian (4 M N^2 flops) and reduces it; ARPACK multiplies by X and X^T
# 50 to 300 times. At alpha = 4 they take the same time at N = 256 (8 ms, one thread); at 128 dense
# is two to three times faster, at 512 and 1024 ARPACK is twice as fast, cold or warm
# (tests/benchmarks/hessian.py).
DENSE_UP_TO = 256
_TOLERANCE = 1e-6
_RESTARTS = 100
_KRYLOV = 40


def curvatures(instance: Instance, y_hat: Array, loss: Loss) -> Array:
    """Return ``c = (N/M) ell''``, so that ``hess L = X^T diag(c) X`` at each of R points.

    Parameters
    ----------
    instance : Instance
    y_hat : (M, R)
        Pre-activations of the points.
    loss : Loss

    Returns
    -------
    (M, R)
    """
    return np.asarray((instance.N / instance.M) * loss.second(y_hat, instance.y[:, None]))


class RiemannianHessian(LinearOperator):  # type: ignore[misc]
    """``P (hess L - mu) P + c w w^T / N``, with P the projector orthogonal to w.

    P alone would put a spurious eigenvalue 0 along w among the lowest. c keeps it above the whole
    spectrum: it is twice the bound max abs(ell'') (1 + sqrt(N/M))^2 on hess L for Gaussian sensing.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    loss : Loss
    """

    def __init__(self, instance: Instance, w: Array, *, loss: Loss) -> None:
        self._sensing = instance.sensing.fork()
        y_hat = self._sensing.forward(w[:, None])
        self._curvature = curvatures(instance, y_hat, loss)
        self.mu = float(multiplier(y_hat, instance.y, loss)[0])
        bound = float(np.abs(self._curvature).max()) * (1 + np.sqrt(instance.M / instance.N)) ** 2
        self._shift = 2 * bound - self.mu
        self._unit = w.astype(np.float64)[:, None] / np.linalg.norm(w.astype(np.float64))
        super().__init__(dtype=np.dtype(np.float64), shape=(instance.N, instance.N))

    def dense(self) -> Array:
        """Build the matrix, (N, N), symmetric; its c is above any spectrum, Gaussian or not."""
        matrix = self @ np.eye(self.shape[0])
        matrix = 0.5 * (matrix + matrix.T)
        return np.asarray(matrix + np.linalg.norm(matrix) * (self._unit @ self._unit.T))

    def project(self, V: Array) -> Array:
        """Return ``P V``: the part of V (N, R) tangent to the sphere at w."""
        return np.asarray(V - self._unit @ (self._unit.T @ V))

    def _matmat(self, V: Array) -> Array:
        along = self._unit.T @ V
        tangent = V - self._unit @ along
        cast = tangent.astype(self._sensing.dtype)
        pulled = self._sensing.adjoint(self._curvature * self._sensing.forward(cast))
        result = self.project(pulled - self.mu * tangent)
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
    loss: Loss,
    modes: int,
    v0: Array | None = None,
    dense_up_to: int = DENSE_UP_TO,
    tolerance: float = _TOLERANCE,
) -> Eigenpairs:
    """Lowest eigenpairs of the Riemannian Hessian at w.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    loss : Loss
    modes : int
        Number of eigenpairs, 1 <= modes < N.
    v0 : (N,), optional
        Where ARPACK starts; the lowest eigenvector of a nearby w saves nothing to a third of the
        products. Without it, or where it is not finite, a fixed vector that knows neither the
        signal, which must not be found because it was put in, nor ARPACK's own random state.
    dense_up_to : int
        Largest N that is solved densely.
    tolerance : float
        Of ARPACK: residual of a pair, relative to its eigenvalue.

    Returns
    -------
    Eigenpairs
        Pairs that ARPACK did not converge are NaN, and so are all of them where w is not finite, or
        where a revealed sensing has not the room (`kernels.revealed.look_ranks`); that is data, not
        an exception. Those that converged come first: next to NaN, a pair need not be the lowest
        (seen after one or two restarts from the vector of another pair).

    Raises
    ------
    ValueError
        If `modes` is not in 1 to N - 1: the tangent space has N - 1 dimensions.

    Notes
    -----
    The products with X have the precision of the sensing: in float32 the values are good to about
    1e-6 of the largest eigenvalue, whichever way they are found.
    """
    N = instance.N
    if not 1 <= modes < N:
        raise ValueError(f"modes must be in 1 to N - 1 = {N - 1}; got modes = {modes}")
    pairs = Eigenpairs(np.full(modes, np.nan), np.full((N, modes), np.nan))
    hessian = RiemannianHessian(instance, w, loss=loss)
    if not np.isfinite(hessian.mu):
        return pairs
    if dense_up_to >= N:
        return Eigenpairs(*eigh(hessian.dense(), subset_by_index=(0, modes - 1)))
    if v0 is None or not np.isfinite(v0).all():
        v0 = np.cos(np.arange(N))
    try:
        values, vectors = eigsh(
            hessian,
            k=modes,
            which="SA",
            v0=hessian.project(v0[:, None])[:, 0],
            ncv=min(N, max(_KRYLOV, 2 * modes + 1)),
            maxiter=_RESTARTS,
            tol=tolerance,
        )
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    except OutgrownError:  # a revealed sensing, whose memory is bounded
        return pairs
    order = np.argsort(values)
    found = len(order)
    pairs.values[:found] = values[order]
    pairs.vectors[:, :found] = vectors[:, order]
    return pairs
