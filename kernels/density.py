"""Density of the Hessian's eigenvalues: at large N from the labels, and of one Hessian by products.

``hess L = (N/M) X^T diag(c) X`` with ``c = ell''`` is a sum of M random rank-one matrices. At large
N its resolvent ``g(z) = tr (z - hess L)^-1 / N`` solves

    z = 1/g + E[c / (1 - c g/alpha)]

(Marchenko and Pastur 1967; Silverstein and Choi 1995), E[.] the mean over the samples. In
``w = 1/g`` and ``d = c/alpha`` this is

    z = w + E[c] + alpha E[d^2 / (w - d)],

a shift of w by the resolvent of a positive measure. So for every real part a of w there is just one
imaginary part b(a) >= 0 for which z is real (Biane 1997), the root of

    alpha E[d^2 / ((a - d)^2 + b^2)] = 1        (b = 0 if the left side is < 1 at 0),

z rises with a, and the density at z(a) is ``b / (pi |w|^2)``. The integral of g is elementary, so
that the share of eigenvalues below z(a) is known without a quadrature:

    F = 1 - Im[(1 - alpha) log w + alpha E[log(w - d) + d/(w - d)]] / pi.

Finite numbers of eigenvalues apart, such as the outlier, are not seen in it, nor does an overlap of
order one with the signal change it: it holds at any point of a descent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal

from alphasweep.kernels.hessian import RiemannianHessian
from alphasweep.kernels.instance import Instance
from alphasweep.kernels.loss import Array, Loss
from alphasweep.kernels.spectrum import increasing_root

_FIRST = 400
_STEPS, _VECTORS = 80, 8


@dataclass(frozen=True)
class Density:
    """Density of eigenvalues at large N, at n ascending points; all float64.

    Attributes
    ----------
    eigenvalue : (n,)
        From the lower to the upper edge of the bulk.
    density : (n,)
        Share of the eigenvalues per unit of eigenvalue; without those at exactly ``-mu``.
    cumulative : (n,)
        Share of the eigenvalues up to there, those at ``-mu`` among them; 1 at the last point.
    at_zero : float
        Share of the eigenvalues that are 0 before mu is subtracted: 1 - alpha if M < N.
    """

    eigenvalue: Array
    density: Array
    cumulative: Array
    at_zero: float

    def below(self, eigenvalue: Array) -> Array:
        """Share of the eigenvalues below each of some values, interpolated."""
        return np.interp(eigenvalue, self.eigenvalue, self.cumulative, left=0.0, right=1.0)


def density(
    curvature: Array,
    alpha: float,
    *,
    mu: float = 0.0,
    weight: Array | None = None,
    points: int = 600,
) -> Density:
    """Density of the eigenvalues of ``(N/M) X^T diag(curvature) X - mu`` as N -> infinity.

    Parameters
    ----------
    curvature : (M,)
        Second derivatives ``ell''`` of the samples, at one point of a descent.
    alpha : float
        M/N.
    mu : float
        Lagrange multiplier, subtracted from all eigenvalues.
    weight : (M,), optional
        Probability of each curvature; the same for all by default.
    points : int
        About how many points there are, half of them at shares of the eigenvalues that crowd at 0
        and 1, half at evenly spaced eigenvalues of the lower nine tenths.

    Returns
    -------
    Density
    """
    c = np.asarray(curvature, dtype=np.float64)
    p = np.full(len(c), 1 / len(c)) if weight is None else np.asarray(weight, dtype=np.float64)
    c, p = c[p > 0], p[p > 0] / p.sum()
    law = _Law(c, p, alpha)
    low, high = law.edges()
    turn = np.linspace(0, np.pi, _FIRST)
    rough = np.concatenate(
        [low + (high - low) * (1 - np.cos(turn)) / 2, np.quantile(c / alpha, turn / np.pi)]
    )
    a = np.unique(np.clip(rough, low, high))
    z, _, share = law.at(a)
    bulk = np.linspace(z[0], np.interp(0.9, share, z), points // 2)
    levels = (1 - np.cos(np.linspace(0, np.pi, points // 2))) / 2
    fine = np.concatenate([a[[0, -1]], np.interp(levels, share, a), np.interp(bulk, z, a)])
    z, rho, share = law.at(np.unique(fine))
    zero = max(0.0, 1.0 - alpha * float(p[c != 0].sum()))
    return Density(z - mu, rho, np.clip(share, 0.0, 1.0), zero)


class _Law:
    """The equations of this module for curvatures c (M,) of probability p (M,)."""

    def __init__(self, c: Array, p: Array, alpha: float) -> None:
        self._d, self._p, self._alpha, self._mean = c / alpha, p, alpha, float(p @ c)
        self._strength = alpha * p * self._d**2

    def edges(self) -> tuple[float, float]:
        """Where b begins and ceases to be > 0, in a: of the lower and of the upper bulk edge."""
        reach = np.sqrt(self._strength.sum())
        return -self._edge_above(-self._d, reach), self._edge_above(self._d, reach)

    def _edge_above(self, d: Array, reach: float) -> float:
        def excess(a: Array) -> tuple[Array, Array]:
            # The power -1/2 of the left side is linear in a for a single curvature.
            left = np.atleast_1d(self._strength @ (a - d) ** -2.0)
            return left**-0.5 - 1, left**-1.5 * (self._strength @ (a - d) ** -3.0)

        lowest = np.array([d.max() + 1e-12 * reach])
        return float(increasing_root(excess, lowest, lowest + reach)[0])

    def at(self, a: Array) -> tuple[Array, Array, Array]:
        """Eigenvalue, density and share of the eigenvalues below, at points a (n,)."""
        squared = np.empty(len(a))
        z, share = np.empty(len(a)), np.empty(len(a))
        for some in np.array_split(np.arange(len(a)), max(1, len(a) * len(self._d) // 2_000_000)):
            distance = a[some] - self._d[:, None]
            b2 = self._imaginary(distance**2)
            squared[some] = b2
            w = distance + 1j * np.sqrt(b2)
            z[some] = a[some] + self._mean + self._strength @ (distance / (distance**2 + b2))
            # At an end b is 0, and w - d is real: its angle is 0 or pi.
            turned = self._p @ (np.angle(w) + (self._d[:, None] / w).imag)
            whole = a[some] + 1j * np.sqrt(b2)
            angle = (1 - self._alpha) * np.angle(whole) + self._alpha * turned
            share[some] = 1 - angle / np.pi
        rho = np.sqrt(squared) / (np.pi * np.maximum(a**2 + squared, 1e-300))
        return z, rho, share

    def _imaginary(self, distance2: Array) -> Array:
        """``b^2`` (n,) for squared distances (a - d)^2, (M, n)."""
        with np.errstate(divide="ignore"):
            inside = self._strength @ (1 / distance2) > 1
        b2 = np.zeros(distance2.shape[1])
        if inside.any():
            near = distance2[:, inside]

            def excess(beta: Array) -> tuple[Array, Array]:
                # 1 over the left side is linear in b^2 for a single curvature.
                terms = 1 / (near + beta)
                left = self._strength @ terms
                return 1 / left - 1, (self._strength @ terms**2) / left**2

            start = np.full(int(inside.sum()), 1e-30)
            b2[inside] = increasing_root(excess, start, np.full_like(start, self._strength.sum()))
        return b2


def lanczos_density(
    instance: Instance,
    w: Array,
    *,
    loss: Loss,
    rng: np.random.Generator,
    steps: int = _STEPS,
    vectors: int = _VECTORS,
) -> tuple[Array, Array]:
    """Estimate the spectrum of the Riemannian Hessian at w by stochastic Lanczos quadrature.

    Parameters
    ----------
    instance : Instance
    w : (N,)
        Point of the sphere of radius sqrt(N).
    loss : Loss
    rng : Generator
        Of the random vectors.
    steps, vectors : int
        Lanczos steps from each of so many random tangent vectors.

    Returns
    -------
    eigenvalue, share : (steps * vectors,)
        Ascending values, and the share of the eigenvalues that each stands for; they sum to 1.

    Notes
    -----
    Lin, Saad and Yang, SIAM Rev. 58, 34 (2016). The share below a value has an error of about
    1 / sqrt(N vectors) from the vectors, and of a few nodes' shares from the steps.
    """
    hessian = RiemannianHessian(instance, w, loss=loss)
    found = []
    for _ in range(vectors):
        v = hessian.project(rng.standard_normal((instance.N, 1)))[:, 0]
        basis = [v / np.linalg.norm(v)]
        diagonal, beside = [], []
        for _ in range(min(steps, instance.N - 1)):
            u = hessian.matvec(basis[-1])
            diagonal.append(float(u @ basis[-1]))
            known = np.array(basis)
            for _ in range(2):  # twice, so that rounding is all that is left
                u = u - known.T @ (known @ u)
            beside.append(float(np.linalg.norm(u)))
            if beside[-1] < 1e-10 * abs(diagonal[0]):
                break
            basis.append(u / beside[-1])
        values, parts = eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
        found.append((values, parts[0] ** 2 / vectors))
    values, shares = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(values)
    return values[order], shares[order]
